"""The page in a real headless Chromium, driven over its debugging pipe: sorting, filtering, no error, no request."""

import base64
import fcntl
import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest

from fusion.report.html import write_report
from fusion.robustness.cells import append_cell
from tests.fusion.test_report import STEP, cell_of

CHROMIUM = next((path for path in map(shutil.which, ("chromium", "chromium-browser", "google-chrome")) if path), None)
pytestmark = pytest.mark.skipif(
    CHROMIUM is None, reason="no chromium, chromium-browser or google-chrome on this machine"
)


class Browser:
    """A headless Chromium with one page, spoken to in the DevTools protocol over a pipe: no port, no package."""

    def __init__(self, folder: Path):
        to_browser, self._out = os.pipe()
        self._in, from_browser = os.pipe()
        options = ["--headless=new", "--no-sandbox", "--disable-gpu", "--remote-debugging-pipe", "--hide-scrollbars"]
        command = [CHROMIUM, *options, "--no-first-run", f"--user-data-dir={folder / 'profile'}", "about:blank"]

        def pipes() -> None:
            # Out of the way first: the pipes themselves may be 3 and 4.
            ends = [fcntl.fcntl(end, fcntl.F_DUPFD, 10) for end in (to_browser, from_browser)]
            os.dup2(ends[0], 3)
            os.dup2(ends[1], 4)

        self._process = subprocess.Popen(
            command, preexec_fn=pipes, close_fds=False, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        os.close(to_browser)
        os.close(from_browser)
        self._rest, self._number, self.events, self._session = b"", 0, [], None
        target = self.send("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.send("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Network", "Log"):
            self.send(f"{domain}.enable")

    def send(self, method: str, **parameters) -> dict:
        """The answer to a command; events that come before it are kept."""
        self._number += 1
        message = {"id": self._number, "method": method, "params": parameters}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._out, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._read()
            if answer.get("id") == self._number:
                assert "error" not in answer, answer
                return answer["result"]
            self.events.append(answer)

    def open(self, page: Path) -> None:
        self.send("Page.navigate", url=page.resolve().as_uri())
        while not any(event["method"] == "Page.loadEventFired" for event in self.events):
            self.events.append(self._read())

    def run(self, script: str):
        """The value of an expression in the page."""
        answer = self.send("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in answer, answer
        return answer["result"].get("value")

    def picture(self, path: Path, width: int, height: int, dark: bool = False) -> None:
        """A PNG of the whole page at a width."""
        scheme = [{"name": "prefers-color-scheme", "value": "dark" if dark else "light"}]
        self.send("Emulation.setEmulatedMedia", features=scheme)
        metrics = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600}
        self.send("Emulation.setDeviceMetricsOverride", **metrics)
        data = self.send("Page.captureScreenshot", format="png", captureBeyondViewport=True)["data"]
        path.write_bytes(base64.b64decode(data))

    def close(self) -> None:
        self._process.kill()
        self._process.wait()
        os.close(self._in)
        os.close(self._out)

    def _read(self) -> dict:
        while b"\0" not in self._rest:
            block = os.read(self._in, 1 << 16)
            assert block, "the browser ended"
            self._rest += block
        message, _, self._rest = self._rest.partition(b"\0")
        return json.loads(message)


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    folder = tmp_path_factory.mktemp("browser")
    for cell in (
        cell_of("clean"),
        cell_of("clean", budget=0.5, nds=0.3),
        cell_of("fog-1", steps=STEP, nds=0.3, seen_in_training="neither"),
        cell_of("fog-2", steps=({**STEP[0], "level": 2.0},), nds=0.1, seen_in_training="neither"),
        cell_of("night", steps=({**STEP[0], "fault": "camera_dark"},), nds=0.2, seen_in_training="fault"),
    ):
        append_cell(folder / "robustness.jsonl", cell)
    page = write_report(folder)
    browser = Browser(folder)
    browser.open(page)
    yield browser
    browser.close()


VISIBLE = (
    "[...document.querySelectorAll('#scores tbody tr')].filter(r => !r.hidden).map(r => r.cells[0].innerText.trim())"
)


def test_sorting_by_a_heading(browser):
    nds = "[...document.querySelectorAll('#scores tbody:last-of-type tr td:nth-child(4)')].map(c => +c.dataset.value)"
    assert browser.run(nds) == [0.3, 0.1, 0.2]
    browser.run("document.querySelectorAll('#scores thead th')[3].click()")
    assert browser.run(nds) == [0.3, 0.2, 0.1]
    browser.run("document.querySelectorAll('#scores thead th')[3].click()")
    assert browser.run(nds) == [0.1, 0.2, 0.3]


def test_filtering_by_words_and_budget(browser):
    def typed(text: str) -> list[str]:
        browser.run(f"filter.value = {text!r}; filter.dispatchEvent(new Event('input'))")
        return sorted(line.split()[0] for line in browser.run(VISIBLE))

    assert typed("") == ["all", "fog", "fog", "night"]
    assert typed("unseen") == ["fog", "fog"]
    assert typed("camera_dark") == ["night"]
    assert typed("unseen night") == []
    assert browser.run("document.getElementById('shown').textContent") == "0 of 4 rows"
    typed("")
    browser.run("document.querySelector('#budgets button[data-budget=\"all\"]').click()")
    assert len(browser.run(VISIBLE)) == 5
    browser.run("document.querySelector('#budgets button').click()")


def test_the_download_is_the_table(browser):
    browser.run(
        "window.saved = []; URL.createObjectURL = (blob) => { window.saved.push(blob); return 'data:,'; };"
        "HTMLAnchorElement.prototype.click = () => {}; document.getElementById('csv').click();"
        "document.getElementById('json').click()"
    )
    lines = browser.run("window.saved[0].text()").splitlines()
    assert len(lines) == 6
    assert lines[0].startswith("run,scenario,faults,levels,budget")
    assert len(json.loads(browser.run("window.saved[1].text()"))["rows"]) == 5


def test_no_error_and_no_request_to_anywhere(browser):
    browser.run("1")
    words = ("Runtime.exceptionThrown", "Log.entryAdded", "Runtime.consoleAPICalled")
    assert [event for event in browser.events if event["method"] in words] == []
    asked = [e["params"]["request"]["url"] for e in browser.events if e["method"] == "Network.requestWillBeSent"]
    assert all(url.startswith(("file:", "data:", "about:")) for url in asked)
    assert sum(url.startswith("file:") for url in asked) == 1


def test_a_phone_needs_no_sideways_scrolling(browser, tmp_path):
    for width, dark in ((1280, False), (1280, True), (390, False)):
        browser.picture(tmp_path / f"{width}.png", width, 900, dark)
        assert browser.run("document.documentElement.scrollWidth") <= width
    assert browser.run("getComputedStyle(document.documentElement).backgroundColor") == "rgb(251, 251, 250)"
