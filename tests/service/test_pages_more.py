"""The pages that make something: a job, a dataset, a prediction. What their scripts do is tested in a browser."""

import html
import json
import re
from typing import Any

import pytest
from fastapi.testclient import TestClient

from service.pages import new
from tests.service.conftest import Serve
from tests.service.test_errors import assert_problem
from tests.worker.jobs.making import LEASE_SECONDS, card, claim, finish, record
from worker.jobs import aliases, datasets, keys, submitting
from worker.jobs.card import Finding, FindingKind
from worker.jobs.db import Database
from worker.jobs.errors import DatasetInvalid
from worker.jobs.failures import Failure
from worker.jobs.form import Form
from worker.jobs.ids import new_id
from worker.jobs.spec import Spec
from worker.jobs.states import Outcome, Scope

HOSTILE = "</script><b>&\u202e"
ESCAPED = "<bdi>&lt;/script&gt;&lt;b&gt;&amp;\u202e</bdi>"


def embedded(text: str, name: str) -> Any:
    """The JSON of a script element, as a browser takes it: up to the first `</script`, whatever is in it."""
    found = re.search(rf'<script type="application/json" id="{name}">(.*?)</script', text, re.DOTALL)
    assert found is not None, name
    return json.loads(found[1])


def trained(db: Database, **spec: Any) -> str:
    job_id = submitting.enqueue(db, Spec.model_validate(spec)).id
    job = claim(db)
    record(db, job, 1)
    finish(db, job, Outcome.SUCCEEDED)
    return job_id


def shoes(db: Database) -> None:
    """An uploaded dataset that waits to be prepared."""
    datasets.add_upload(db, new_id(), Form(name="shoes"))


def prepared(db: Database, **changed: Any) -> None:
    claimed = datasets.claim(db, "worker-1", LEASE_SECONDS)
    assert claimed is not None
    datasets.set_ready(db, claimed.id, claimed.attempt, card(name=claimed.name, **changed))


def guest_of(serve: Serve, db: Database) -> TestClient:
    """With a key that may only look, and owns nothing."""
    key, _ = keys.create(db, [Scope.READ])
    guest = serve()
    guest.headers["Authorization"] = f"Bearer {key}"
    return guest


def test_the_form_has_the_whole_schema_of_a_spec(client: TestClient) -> None:
    shown = embedded(client.get("/ui/new").text, "schema")
    assert shown == Spec.model_json_schema()
    assert list(shown["properties"]) == list(Spec.model_fields)  # in the order that they are shown in


def test_the_form_may_rely_on_defaults_of_parts_being_those_of_their_fields() -> None:
    """The form leaves out what each field would be anyway, so a part that is left out must be the same."""
    schema = Spec.model_json_schema()
    seen = 0
    for name, field in schema["properties"].items():
        choices = [each["$ref"] for each in field.get("oneOf", [field]) if "$ref" in each]
        kinds = [schema["$defs"][each.rpartition("/")[2]] for each in choices]
        if "oneOf" in field:
            kinds = [each for each in kinds if "default" in each["properties"]["name"]]
        if field.get("default") is None or not kinds:
            continue
        (kind,) = kinds
        assert field["default"] == {key: each["default"] for key, each in kind["properties"].items()}, name
        seen += 1
    assert seen == 7


def test_the_specs_that_come_with_epochd_can_be_begun_with(client: TestClient) -> None:
    found = sorted(new.SPECS.glob("*.yaml"))
    text = client.get("/ui/new").text
    assert [path.stem for path in found] == re.findall(r'<option value="([^"]+)"', text)
    assert len(found) >= 5
    for path in found:
        text = client.get(f"/ui/new?spec={path.stem}").text
        Spec.model_validate(embedded(text, "begin"))
        assert re.search(rf'<option value="{path.stem}" selected>', text), path
    for name in ("nothing", "../new", "..%2f..%2fpyproject"):
        assert client.get(f"/ui/new?spec={name}").status_code == 404, name


def test_a_copy_begins_with_what_differs_from_the_defaults_and_hostile_names_stay_text(
    client: TestClient, db: Database
) -> None:
    given = {"name": HOSTILE, "labels": {HOSTILE: HOSTILE}, "seed": 2**62 + 1, "optimizer": {"lr": 0.5}}
    job_id = submitting.enqueue(db, Spec.model_validate(given)).id
    text = client.get(f"/ui/new?from={job_id}").text
    assert embedded(text, "begin") == given | {"dataset": {"version": 1}}
    assert "<b>" not in text
    assert embedded(client.get("/ui/new?dataset=shoes&version=2").text, "begin") == {
        "dataset": {"name": "shoes", "version": 2}
    }
    assert embedded(client.get("/ui/new").text, "begin") == {}
    assert_problem(client.get("/ui/new?from=nobody"), 404, "not_found")
    assert client.get(f"/ui/new?dataset={HOSTILE}").status_code == 422


def test_the_form_knows_the_datasets_and_how_far_they_are(client: TestClient, db: Database) -> None:
    shoes(db)
    known = {each["name"]: each["status"] for each in embedded(client.get("/ui/new").text, "known-datasets")}
    assert (known["fashion-mnist"], known["mnist"], known["shoes"]) == ("ready", "available", "uploaded")


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("name: shoes\noptimizer: {lr: 1e-3}", {"name": "shoes", "optimizer": {"lr": 0.001}}),
        ("- name: flatten\n- name: linear\n  features: 7", [{"name": "flatten"}, {"name": "linear", "features": 7}]),
        ("no", "no"),
        ("", None),
    ],
)
def test_yaml_is_read_as_the_specs_are(client: TestClient, text: str, value: Any) -> None:
    answer = client.post("/ui/new/yaml", content=text.encode())
    assert answer.status_code == 200, answer.text
    assert answer.json() == value


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (b"a: 1\n b: 2", "look in line 2 again"),
        (b"{", "look in line 1 again"),
        (b"a: &x [1]\nb: *x", "aliases"),
        (b"a: 2026-01-01", "JSON does not have"),
        (b"a: .nan", "JSON does not have"),
        (b"\xff\xfe\xff", "look again"),
        (b"[" * 5_000 + b"]" * 5_000, "levels deep"),
        (b"a: 2026-99-99", "a time that there is not"),
        (b"a: !!python/object/apply:os.system [true]", "neither as JSON nor as YAML"),
        (b"#" * 20_000, "16 KiB"),
    ],
)
def test_yaml_that_is_none_or_has_no_json_is_refused_in_a_sentence(client: TestClient, text: bytes, said: str) -> None:
    answer = client.post("/ui/new/yaml", content=text)
    assert_problem(answer, 400, "invalid_request")
    assert said in answer.json()["detail"]


def test_datasets_are_listed_and_looked_at_often_while_one_is_prepared(client: TestClient, db: Database) -> None:
    text = client.get("/ui/datasets").text
    assert "every 10s" in text
    assert 'aria-label="Prepare mnist"' in text
    assert 'aria-label="Prepare fashion-mnist"' not in text  # it is ready
    shoes(db)
    found = datasets.claim(db, "worker-1", LEASE_SECONDS)
    assert found is not None
    datasets.record_progress(db, found.id, 1, "decoding", 5, 10)
    text = client.get("/ui/datasets-table").text
    assert "every 2s" in text
    assert '<progress max="10" value="5" aria-label="decoding">' in text
    seen = re.search(r"seen=([^\"&]+)", text)
    assert seen is not None
    assert client.get("/ui/datasets-table", params={"seen": seen[1]}).status_code == 204
    assert all(f'name="{field}"' in client.get("/ui/datasets").text for field in Form.model_fields)


def test_a_dataset_shows_its_classes_and_what_was_found_in_it(client: TestClient, db: Database) -> None:
    shoes(db)
    finding = Finding(kind=FindingKind.LEAKAGE, count=2, detail=HOSTILE, files=[{"file": HOSTILE, "detail": "again"}])
    counts = {"classes": [HOSTILE, "dog"], "train_counts": [300, 200], "test_counts": [60, 40]}
    assert "It waits for a worker" in client.get("/ui/datasets/shoes").text
    prepared(db, findings=[finding], **counts)
    text = client.get("/ui/datasets/shoes").text
    assert "<b>" not in text
    assert text.count(ESCAPED) == 3  # the file, and the class beside its bars and its pictures
    assert re.findall(r'<rect width="([\d.]+)"', text) == ["100.00", "20.00", "66.67", "13.33"]
    assert f'data-class="{html.escape(HOSTILE)}"' in text
    assert 'data-delete="/datasets/shoes?version=1"' in text
    assert 'href="/ui/new?dataset=shoes"' in text
    assert "every 1s" not in text
    part = client.get("/ui/datasets/shoes/now").text
    seen = re.search(r"seen=([^\"&]+)", part)
    assert seen is not None
    assert client.get("/ui/datasets/shoes/now", params={"seen": seen[1]}).status_code == 204


def test_a_version_that_is_asked_for_stays_the_one_that_is_shown(client: TestClient, db: Database) -> None:
    for _ in range(2):
        shoes(db)
        prepared(db)
    text = client.get("/ui/datasets/shoes?version=1").text
    assert 'href="/ui/new?dataset=shoes&amp;version=1"' in text
    assert "/ui/datasets/shoes/now?version=1" in text
    assert 'data-delete="/datasets/shoes"' in text  # all versions
    assert "Delete all versions" not in client.get("/ui/datasets/fashion-mnist").text
    assert_problem(client.get("/ui/datasets/shoes?version=3"), 404, "not_found")
    assert client.get("/ui/datasets/shoes/now?version=0").status_code == 422


def test_a_dataset_that_is_invalid_or_of_numbers_or_not_there_yet_has_a_page(client: TestClient, db: Database) -> None:
    shoes(db)
    found = datasets.claim(db, "worker-1", LEASE_SECONDS)
    assert found is not None
    datasets.set_invalid(db, found.id, 1, Failure.of(DatasetInvalid("There is <b>nothing</b> in it.")))
    text = client.get("/ui/datasets/shoes").text
    assert "There is &lt;b&gt;nothing&lt;/b&gt; in it." in text
    assert "Train on it" not in text
    assert "data-post" in client.get("/ui/datasets/mnist").text
    datasets.add_upload(db, new_id(), Form(name="ages", task="regression"))
    prepared(db, classes=[], targets=["age", HOSTILE], task="regression")
    text = client.get("/ui/datasets/ages").text
    assert html.escape(f"age, {HOSTILE}") in text
    assert text.count('class="sample"') == 1
    assert_problem(client.get("/ui/datasets/nothing"), 404, "not_found")


def test_who_can_answer_can_be_chosen(client: TestClient, db: Database) -> None:
    assert "No job has a checkpoint yet" in client.get("/ui/try").text
    first = trained(db, name=HOSTILE)
    second = trained(db, name="second")
    waiting = submitting.enqueue(db, Spec(name="waiting")).id
    text = client.get("/ui/try").text
    assert re.findall(r'<option value="([^"]+)"[^>]* selected>', text) == [f"job:{second}"]
    assert "<b>" not in text
    assert waiting not in text
    aliases.put(db, "default", first, "best")
    aliases.put(db, "other", second, "best")
    text = client.get("/ui/try").text
    assert re.findall(r'<option value="([^"]+)"[^>]* selected>', text) == ["model:default"]
    text = client.get("/ui/try?model=other&checkpoint=1").text
    assert re.findall(r'<option value="([^"]+)"[^>]* selected>', text) == ["model:other"]
    assert 'data-checkpoint="1"' in text
    text = client.get(f"/ui/try?job={waiting}").text
    assert re.findall(r'<option value="([^"]+)"[^>]* selected>', text) == [f"job:{waiting}"]
    assert_problem(client.get("/ui/try?job=nobody"), 404, "not_found")
    assert_problem(client.get("/ui/try?model=nobody"), 404, "not_found")
    assert client.get("/ui/try?checkpoint=first").status_code == 422
    assert client.get(f"/ui/try?checkpoint={HOSTILE}").status_code == 422


def test_what_is_another_owners_is_not_there(serve: Serve, client: TestClient, db: Database) -> None:
    job_id = trained(db, name="secret job")
    aliases.put(db, "secret-alias", job_id, "best")
    shoes(db)
    prepared(db)
    guest = guest_of(serve, db)
    for path in ("/ui/new", "/ui/datasets", "/ui/datasets-table", "/ui/try"):
        answer = guest.get(path)
        assert answer.status_code == 200, path
        assert not re.search(f"secret|shoes|{job_id}", answer.text), path
    hidden = (f"/ui/new?from={job_id}", f"/ui/try?job={job_id}", "/ui/try?model=secret-alias", "/ui/datasets/shoes")
    for path in (*hidden, "/ui/datasets/shoes/now"):
        assert_problem(guest.get(path), 404, "not_found")
    assert guest.get("/ui/datasets/fashion-mnist").status_code == 200  # built in: everybody's
    assert_problem(guest.post("/ui/new/yaml", content=b"a: 1"), 403, "forbidden")


def test_these_pages_load_nothing_from_elsewhere_and_run_nothing_of_their_own(client: TestClient, db: Database) -> None:
    trained(db)
    for path in ("/ui/new", "/ui/datasets", "/ui/datasets/fashion-mnist", "/ui/datasets/mnist", "/ui/try"):
        answer = client.get(path)
        assert answer.status_code == 200, path
        markup = re.sub(r'<script type="application/json".*?</script>', "", answer.text, flags=re.DOTALL)
        assert not re.search(r"<script(?![^>]* src=)|\son\w+=|\sstyle=|<style|https?://|data:|blob:", markup), path
        labelled = set(re.findall(r'<label[^>]* for="([^"]+)"', markup))
        controls = re.findall(r"<(?:input|select|textarea)(?![^>]*type=\"hidden\")[^>]*? id=\"([^\"]+)\"", markup)
        assert set(controls) <= labelled, path


def test_of_equal_names_only_the_one_that_is_found_has_a_link(client: TestClient, db: Database) -> None:
    for owner in ("", "a" * 24):
        datasets.add_upload(db, new_id(), Form(name="shoes"), owner)
    text = client.get("/ui/datasets").text
    assert text.count('href="/ui/datasets/shoes"') == 1
    assert text.count("<bdi>shoes</bdi>") == 2
    assert "of key aaaaaaaa" in text
