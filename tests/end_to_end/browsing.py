"""A real browser for tests: the machine's own chromium, driven by Playwright."""

import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import pytest
from playwright.sync_api import Browser, Page, sync_playwright

AXE: Final = Path(__file__).parents[2] / ".venv" / "browser" / "axe.min.js"
_PATIENCE: Final = 30.0
_NAMES: Final = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
_WATCH = """
window.violations = [];
const note = (event) => violations.push(`${event.violatedDirective} ${event.blockedURI}`);
document.addEventListener("securitypolicyviolation", note);
"""


def chromium() -> str:
    """Where it is; without one the test skips itself."""
    found = next(filter(None, map(shutil.which, _NAMES)), None)
    if found is None:
        pytest.skip("no chromium here; `make .venv/browser/installed` installs one, as root")
    return found


@contextmanager
def browser() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        made = playwright.chromium.launch(executable_path=chromium(), args=["--no-sandbox"])
        yield made
        made.close()


class Window:
    """A page, and whatever went wrong in it."""

    def __init__(self, browser: Browser, url: str, **context: Any) -> None:
        self.context = browser.new_context(base_url=url, **context)
        self.page: Page = self.context.new_page()
        self.page.add_init_script(_WATCH)
        self.page.set_default_timeout(1000 * _PATIENCE)
        self.complaints: list[str] = []
        self.page.on("console", lambda said: self._note(said.text) if said.type in ("error", "warning") else None)
        self.page.on("pageerror", lambda error: self._note(str(error)))
        self.page.on("dialog", lambda dialog: dialog.accept())

    def _note(self, complaint: str) -> None:
        self.complaints.append(f"{self.page.url}: {complaint}")

    def violations(self) -> list[str]:
        found: list[str] = self.page.evaluate("window.violations")
        return found

    def until(self, expression: str) -> None:
        """Asks again and again; Playwright's own way needs an eval, which our pages do not allow."""
        deadline = time.monotonic() + _PATIENCE
        while not self.page.evaluate(expression):
            assert time.monotonic() < deadline, f"{self.page.url}: never {expression}"
            time.sleep(0.05)

    def faults(self) -> list[str]:
        """What axe finds on the page as it is, of those faults that keep people out."""
        self.page.evaluate(AXE.read_text())
        result: dict[str, Any] = self.page.evaluate("axe.run({resultTypes: ['violations']})")
        return [
            f"{self.page.url} {each['id']}: {each['help']} {[node['html'][:120] for node in each['nodes'][:3]]}"
            for each in result["violations"]
            if each["impact"] in ("serious", "critical")
        ]
