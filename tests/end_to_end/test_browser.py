"""The dashboard in a real browser, of an epochd that has a key: what people do, step by step."""

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from playwright.sync_api import Browser, expect

from tests.end_to_end.browsing import AXE, Window, browser
from tests.end_to_end.pictures import png, zip_files
from tests.end_to_end.serving import Epochd, epochd

KEY = "a-key-for-the-browser"
SMALL = {"model": {"name": "mlp", "hidden": [16]}, "threads": 1}
HOSTILE = "<script>window.owned = 1</script><img src=x onerror='window.owned = 1'>\u202egnp.x"


@pytest.fixture(scope="module")
def house(fresh_data_dir: Callable[[], Path]) -> Iterator[Epochd]:
    with epochd(fresh_data_dir(), {"EPOCHD_API_KEY": KEY, "EPOCHD_SLOTS": "1"}) as running:
        running.http.headers["Authorization"] = f"Bearer {KEY}"
        yield running


@pytest.fixture(scope="module")
def chrome() -> Iterator[Browser]:
    with browser() as running:
        yield running


@pytest.fixture(scope="module")
def done(house: Epochd) -> list[str]:
    """Two jobs that have succeeded, one of them with a name that nobody should trust."""
    jobs = [house.submit(name=HOSTILE, labels={HOSTILE[:50]: HOSTILE}, epochs=2, **SMALL)]
    jobs.append(house.submit(name="other", epochs=2, seed=1, **SMALL))
    for job in jobs:
        assert house.wait_terminal(job)["status"] == "succeeded"
    return jobs


def picture(prepared: Path, number: int) -> bytes:
    return png(np.array(np.load(prepared / "test_images.npy", mmap_mode="r")[number, 0]))


@pytest.fixture
def window(chrome: Browser, house: Epochd) -> Iterator[Window]:
    """Signed in; and nothing may have gone wrong in the end."""
    made = Window(chrome, house.url, viewport={"width": 1280, "height": 900})
    made.page.goto("/ui/try")
    made.page.get_by_label("API key").fill(KEY)
    made.page.get_by_role("button", name="Open").click()
    made.page.wait_for_url("**/ui/try")
    yield made
    assert made.violations() == []
    assert made.complaints == []
    made.context.close()


def test_a_job_from_the_form_is_watched_while_its_curve_grows_and_is_cancelled(
    window: Window, house: Epochd, done: list[str]
) -> None:
    page = window.page
    page.goto(f"/ui/new?from={done[1]}")
    expect(page.get_by_label("name", exact=True).first).to_have_value("other")
    page.get_by_label("name", exact=True).first.fill("from the form")
    page.get_by_label("epochs", exact=True).fill("0")
    expect(page.get_by_label("epochs", exact=True)).to_have_attribute("aria-invalid", "true")
    page.get_by_label("epochs", exact=True).fill("2000")
    expect(page.locator("#plan")).to_contain_text("12,730 weights")  # parameters
    page.locator("#submit-job").click()
    page.wait_for_url("**/ui/jobs/*")
    expect(page.get_by_role("heading", level=1)).to_have_text("from the form")
    page.evaluate("window.same = true")
    loss = page.locator("[data-curve=loss]")
    for points in (1, 2, 3):
        window.until(f"document.querySelector('[data-curve=loss]').dataset.points >= {points}")
    assert page.evaluate("window.same")  # nothing was loaded anew
    assert loss.locator("canvas").count() == 1
    page.get_by_role("button", name="Pause").click()
    expect(page.locator("#now")).to_have_attribute("data-status", "paused")
    page.get_by_role("button", name="Resume").click()
    expect(page.locator("#now")).to_have_attribute("data-status", "running")
    page.get_by_role("button", name="Cancel").click()
    expect(page.locator("#now")).to_have_attribute("data-status", "cancelled")
    assert house.job(page.url.rpartition("/")[2])["status"] == "cancelled"
    assert page.evaluate("window.same")


def test_a_dataset_is_uploaded_and_seen(window: Window, house: Epochd, prepared: Path, tmp_path: Path) -> None:
    files = ((f"{'boots' if number % 2 else 'bags'}/{number}.png", picture(prepared, number)) for number in range(40))
    archive = zip_files(tmp_path / "shapes.zip", files)
    page = window.page
    page.goto("/ui/datasets")
    page.locator("#upload-form input[type=file]").set_input_files(archive)
    page.locator("#upload-form [name=name]").fill("shapes")
    page.locator("#upload-form button[type=submit]").click()
    page.wait_for_url("**/ui/datasets/shapes*")
    expect(page.locator("main")).to_contain_text("ready", timeout=60_000)
    window.until("document.querySelectorAll('main img').length >= 8")
    page.locator("main img").first.scroll_into_view_if_needed()
    window.until("document.querySelector('main img').naturalWidth === 28")
    expect(page.locator("main")).to_contain_text("boots")


def test_a_picture_that_is_dropped_is_told_what_it_is(window: Window, done: list[str], prepared: Path) -> None:
    page = window.page
    page.goto(f"/ui/try?job={done[0]}")
    image = picture(prepared, 0)
    drop = """async (zone, bytes) => {
      const transfer = new DataTransfer();
      transfer.items.add(new File([new Uint8Array(bytes)], "boot.png", { type: "image/png" }));
      zone.dispatchEvent(new DragEvent("drop", { dataTransfer: transfer, bubbles: true, cancelable: true }));
    }"""
    page.locator("#drop-zone").evaluate(drop, list(image))
    first = page.locator("#answer li").first
    expect(first).to_contain_text("%")
    answer = page.request.post(
        "/predict",
        params={"job": done[0]},
        headers={"Origin": page.url.rpartition("/ui")[0]},
        multipart={"image": {"name": "boot.png", "mimeType": "image/png", "buffer": image}},
    )
    assert first.get_attribute("data-label") == answer.json()["predictions"][0]["label"]
    window.until("document.querySelector('#trajectory canvas')")


def test_jobs_are_ticked_and_compared(window: Window, house: Epochd, done: list[str]) -> None:
    page = window.page
    page.goto("/?status=succeeded")
    for job in done:
        page.locator(f"input[value='{job}']").check()
    house.submit(name="newer", epochs=1, **SMALL)
    page.goto("/")
    expect(page.locator("#jobs")).to_contain_text("newer")
    window.until("document.querySelectorAll('#jobs tbody tr').length > 2")
    page.wait_for_timeout(2500)  # it has been renewed by then
    assert page.locator("#jobs tbody tr").count() > 2
    page.get_by_role("button", name="Compare the 2 ticked").click()
    expect(page.locator("#comparison")).to_contain_text("McNemar")
    expect(page.locator("#comparison")).to_contain_text("/seed")
    window.until("document.querySelector('[data-metric=test_loss]').dataset.points === '2'")


def test_hostile_names_are_shown_and_do_nothing(window: Window, done: list[str]) -> None:
    page = window.page
    for path in (
        "/",
        f"/ui/jobs/{done[0]}",
        f"/ui/compare?jobs={','.join(done)}",
        f"/ui/try?job={done[0]}",
        f"/ui/new?from={done[0]}",
    ):
        page.goto(path)
        page.wait_for_load_state("networkidle")
        assert page.evaluate("window.owned === undefined"), path
        assert page.locator("img[src=x]").count() == 0, path
    page.goto(f"/ui/jobs/{done[0]}")
    expect(page.get_by_role("heading", level=1)).to_have_text(HOSTILE)


def test_pictures_that_were_confused_are_seen(window: Window, done: list[str]) -> None:
    page = window.page
    page.goto(f"/ui/jobs/{done[1]}")
    page.locator(".confused button").first.click()
    window.until("document.querySelector('#pictures img')?.naturalWidth === 28")
    expect(page.locator("#pictures")).to_contain_text("%")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_nobody_is_kept_out(chrome: Browser, house: Epochd, done: list[str], scheme: str) -> None:
    """No serious fault of accessibility, and nothing wider than a phone."""
    if not AXE.exists():
        pytest.skip("axe-core is not here; `make .venv/browser/installed` fetches it with npm")
    window = Window(chrome, house.url, color_scheme=scheme, viewport={"width": 390, "height": 844})
    page, found = window.page, []
    page.goto("/ui/key")
    found += window.faults()
    page.get_by_label("API key").fill(KEY)
    page.get_by_role("button", name="Open").click()
    pages = [
        "/",
        f"/ui/jobs/{done[0]}",
        f"/ui/compare?jobs={','.join(done)}",
        "/ui/new",
        "/ui/datasets",
        "/ui/datasets/fashion-mnist",
        f"/ui/try?job={done[0]}",
        "/ui/sweeps",
    ]
    for path in pages:
        page.goto(path)
        page.wait_for_timeout(400)
        found += window.faults()
        wide = page.evaluate("document.documentElement.scrollWidth")
        found += [f"{path} is {wide} wide"] if wide > 390 else []
        found += window.violations()
    window.context.close()
    assert found + window.complaints == []
