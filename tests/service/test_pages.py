"""Pages as they are made here; what becomes of them in a browser is tested in tests/end_to_end/test_browser.py."""

import html
import re
from datetime import UTC, datetime, timedelta

import pytest
from fastapi.testclient import TestClient
from pydantic import SecretStr

from service.pages import rendering
from tests.service.conftest import Serve
from tests.worker.jobs.making import claim, finish, record
from worker.jobs import keys, queue, submitting
from worker.jobs.db import Database
from worker.jobs.errors import Diverged
from worker.jobs.failures import Failure
from worker.jobs.spec import Spec
from worker.jobs.states import Outcome, Scope, Status

HOSTILE = "<script>alert('&')</script>\u202egnp.x"
CSP = "default-src 'self'; base-uri 'none'; form-action 'self'; frame-ancestors 'none'; object-src 'none'"


def trained(db: Database, **spec: object) -> str:
    job_id = submitting.enqueue(db, Spec.model_validate(spec)).id
    job = claim(db)
    record(db, job, 1)
    finish(db, job, Outcome.SUCCEEDED)
    return job_id


def test_an_empty_house_says_how_to_begin(client: TestClient) -> None:
    assert "Nothing has been trained here yet." in client.get("/").text
    assert "No job is like this." in client.get("/?status=failed").text


def test_pages_load_nothing_from_elsewhere_and_run_nothing_of_their_own(client: TestClient, db: Database) -> None:
    job_id = trained(db)
    for path in ("/", f"/ui/jobs/{job_id}", "/ui/key", "/ui/jobs/nobody"):
        answer = client.get(path, headers={"Accept": "text/html"})
        assert answer.headers["Content-Security-Policy"] == CSP, path
        assert not re.search(r"<script(?![^>]* src=)|\son\w+=|\sstyle=|<style|https?://", answer.text), path


def test_hostile_names_stay_text(client: TestClient, db: Database) -> None:
    job_id = trained(db, name=HOSTILE, labels={HOSTILE: HOSTILE})
    for path in ("/", f"/ui/jobs/{job_id}", "/ui/jobs"):
        text = client.get(path).text
        assert "<script>alert" not in text, path
        assert "<bdi>&lt;script&gt;alert(&#39;&amp;&#39;)&lt;/script&gt;\u202egnp.x</bdi>" in text, path


def test_a_part_that_is_as_it_was_is_not_sent_again(client: TestClient, db: Database) -> None:
    """Asked for by the address that the page has it ask."""
    job_id = trained(db)
    submitting.enqueue(db, Spec())
    addresses = set()
    for page in ("/", "/?status=&label=", "/?status=succeeded&limit=1", f"/ui/jobs/{job_id}"):
        for address in re.findall(r'hx-get="([^"]+seen=[^"]*)"', client.get(page).text):
            first = client.get(html.unescape(address))
            assert first.status_code == 200, address
            (again,) = re.findall(r'hx-get="([^"]+seen=[^"]*)"', first.text)
            assert client.get(html.unescape(again)).status_code == 204, again
            addresses.add(address)
    assert len(addresses) == 6


def test_a_form_that_leaves_everything_open_shows_everything(client: TestClient, db: Database) -> None:
    submitting.enqueue(db, Spec(name="only"))
    assert "<bdi>only</bdi>" in client.get("/?status=&label=&after=").text


def test_the_pages_of_other_keys_are_not_there(serve: Serve, db: Database) -> None:
    client = serve(api_key=SecretStr("a-key-that-is-long-enough"))
    mine, _ = keys.create(db, (Scope.READ,))
    client.app.state.keys.look()  # type: ignore[attr-defined]
    job_id, other = trained(db, name="the house's"), trained(db)
    headers = {"Authorization": f"Bearer {mine}"}
    for path in ("/", "/ui/jobs", "/ui/datasets", "/ui/try", "/ui/sweeps"):
        answer = client.get(path, headers=headers)
        assert answer.status_code == 200, path
        assert job_id not in answer.text, path
    parts = ("", "/now", "/kept", "/classes", "/made", "/log")
    for path in (*(f"/ui/jobs/{job_id}{part}" for part in parts), f"/ui/compare?jobs={job_id},{other}"):
        assert client.get(path, headers=headers).status_code == 404, path


def test_the_table_has_the_newest_numbers_and_the_filters(client: TestClient, db: Database) -> None:
    trained(db, name="first", labels={"team": "a"})
    submitting.enqueue(db, Spec(name="second"))
    assert re.findall(r"<bdi>(first|second)</bdi>", client.get("/").text) == ["second", "first"]
    assert re.findall(r"<bdi>(first|second)</bdi>", client.get("/?status=queued").text) == ["second"]
    assert re.findall(r"<bdi>(first|second)</bdi>", client.get("/?label=team=a").text) == ["first"]
    assert "50.00 %" in client.get("/?label=team=a").text
    assert client.get("/?status=tired", headers={"Accept": "text/html"}).status_code == 422


def test_a_page_of_jobs_leads_to_the_next(client: TestClient, db: Database) -> None:
    jobs = [submitting.enqueue(db, Spec(name=f"number {number}")).id for number in range(3)]
    first = client.get("/?limit=2").text
    assert f"after={jobs[1]}" in first
    assert "number 0" in client.get(f"/?limit=2&after={jobs[1]}").text


def test_what_can_be_asked_of_a_job_depends_on_where_it_is(client: TestClient, db: Database) -> None:
    waiting = submitting.enqueue(db, Spec()).id
    text = client.get(f"/ui/jobs/{waiting}").text
    assert all(f'data-post="/jobs/{waiting}/{act}"' in text for act in ("pause", "cancel"))
    assert "Place 1 in the queue." in text
    job = claim(db)
    record(db, job, 1)
    why = Failure.of(Diverged("The loss became nan.", hint="Lower the learning rate."))
    queue.finish(db, job.id, job.attempt, Outcome.FAILED, why, max_attempts=3)
    text = client.get(f"/ui/jobs/{waiting}").text
    assert f'data-post="/jobs/{waiting}/retry"' in text
    assert "The loss became nan." in text
    assert "Lower the learning rate." in text
    assert f'data-post="/jobs/{waiting}/pause"' not in text


def test_an_error_is_a_page_for_people_and_a_problem_for_programs(client: TestClient) -> None:
    shown = client.get("/ui/jobs/nobody", headers={"Accept": "text/html"})
    assert shown.status_code == 404
    assert "<h1>Not Found</h1>" in shown.text
    told = client.get("/ui/jobs/nobody", headers={"Accept": "application/json"})
    assert told.headers["Content-Type"] == "application/problem+json"
    assert client.get("/jobs/nobody", headers={"Accept": "text/html"}).json()["code"] == "not_found"


def test_files_may_be_kept_as_long_as_their_address_is_the_same(client: TestClient) -> None:
    addresses = re.findall(r'(?:src|href)="(/static/[^"]+)"', client.get("/").text)
    assert len(addresses) >= 5
    for address in addresses:
        assert "immutable" in client.get(address).headers["Cache-Control"], address
    assert client.get("/static/app.css").headers["Cache-Control"] == "no-cache"
    assert client.get("/static/../main.py").status_code == 404
    assert client.get("/static/nothing.js").status_code == 404


def test_a_log_shows_its_newest_lines(client: TestClient, db: Database) -> None:
    job_id = trained(db)
    assert "has not said anything yet" in client.get(f"/ui/jobs/{job_id}/log").text
    settings = client.app.state.settings  # type: ignore[attr-defined]
    log = settings.data_dir / "jobs" / job_id / "attempt-1.log"
    log.parent.mkdir(parents=True)
    log.write_text("".join(f"<line {number}>\n" for number in range(300)))
    text = client.get(f"/ui/jobs/{job_id}/log").text
    assert "&lt;line 299&gt;" in text
    assert "&lt;line 99&gt;" not in text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(None, "\u2013"), (0.25, "0.2 s"), (59, "59 s"), (61, "1 min 1 s"), (3700, "1 h 1 min"), (90_000, "1 d 1 h")],
)
def test_durations_are_written_in_two_units(seconds: float | None, text: str) -> None:
    assert rendering.duration(seconds) == text


def test_times_sizes_and_shares_are_written_for_people() -> None:
    at = datetime.now(UTC)
    assert [rendering.ago(at - timedelta(seconds=each)) for each in (0, 30, 90, 7300, 2e5)] == [
        *("just now", "30 seconds ago", "1 minute ago", "2 hours ago", "2 days ago")
    ]
    assert [rendering.size(each) for each in (None, 5, 2048, 5 * 2**20, 2**40)] == [
        *("\u2013", "5 B", "2.0 KiB", "5.0 MiB", "1.0 TiB")
    ]
    assert (rendering.percent(0.5), rendering.number(0.123456), rendering.whole(12345.6)) == (
        *("50.00 %", "0.1235", "12\u202f346"),
    )


def test_the_share_that_is_trained_counts_batches(db: Database) -> None:
    job = queue.get(db, submitting.enqueue(db, Spec(epochs=4)).id)
    assert rendering.progress(job) == 0
    job.epoch, job.batch, job.batches = 2, 5, 10
    assert rendering.progress(job) == pytest.approx(0.375)
    job.batch, job.status = 10, Status.CANCELLED
    assert rendering.progress(job) == pytest.approx(0.5)


def test_a_verdict_calls_jobs_by_their_names_which_stay_text() -> None:
    said = rendering.with_names("Job aa is better than bb.", {"aa": "<b>", "bb": "aa"})
    assert said == "Job <bdi>&lt;b&gt;</bdi> is better than <bdi>aa</bdi>."
