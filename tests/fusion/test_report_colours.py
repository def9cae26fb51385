"""In Chromium: contrast of all words as WCAG 2.1 computes it, light and dark; one run of several at a time."""

import numpy as np
import pytest

from fusion.report.html import write_report
from fusion.robustness.cells import append_cell
from fusion.scoring.metrics import write_metrics
from tests.fusion.test_report import STEP, cell_of, metrics_of
from tests.fusion.test_report_browser import CHROMIUM, VISIBLE, Browser
from tests.fusion.test_report_runs import cells, gradients_file

pytestmark = pytest.mark.skipif(
    CHROMIUM is None, reason="no chromium, chromium-browser or google-chrome on this machine"
)
LEAST = 4.5
"""Level AA for text of any size."""
WORDS = """
(() => {
  const paper = document.createElement("canvas").getContext("2d", { willReadFrequently: true });
  const rgba = (colour) => {
    paper.clearRect(0, 0, 1, 1); paper.fillStyle = colour; paper.fillRect(0, 0, 1, 1);
    const [r, g, b, a] = paper.getImageData(0, 0, 1, 1).data; return [r, g, b, a / 255];
  };
  const found = [];
  for (const block of document.querySelectorAll(".of-run")) block.hidden = false;
  for (const section of document.querySelectorAll("section, details")) { section.hidden = false; section.open = true; }
  for (const element of document.querySelectorAll("body *")) {
    const own = [...element.childNodes].filter((n) => n.nodeType === 3 && n.data.trim());
    if (!own.length || /^(SCRIPT|STYLE|TITLE|title)$/.test(element.tagName) || !element.checkVisibility()) continue;
    const style = getComputedStyle(element), grounds = [];
    let opacity = 1;
    for (let at = element; at; at = at.parentElement) {
      grounds.push(rgba(getComputedStyle(at).backgroundColor)); opacity *= +getComputedStyle(at).opacity;
    }
    const isSvg = element instanceof SVGElement;
    found.push({ text: own[0].data.trim().slice(0, 30), name: element.tagName + "." + element.getAttribute("class"),
                 colour: rgba(isSvg ? style.fill : style.color), grounds: grounds.reverse(), opacity });
  }
  return found;
})()
"""


def luminance(rgb) -> float:
    """Relative luminance of sRGB from 0 to 255 (WCAG 2.1)."""
    share = np.asarray(rgb, float) / 255
    linear = np.where(share <= 0.04045, share / 12.92, ((share + 0.055) / 1.055) ** 2.4)
    return float(linear @ [0.2126, 0.7152, 0.0722])


def contrast(word: dict) -> float:
    """Of a word against what lies under it, the page's own ground first."""
    ground = np.array([255.0] * 3)
    for *rgb, alpha in word["grounds"]:
        ground = (1 - alpha) * ground + alpha * np.array(rgb)
    *rgb, alpha = word["colour"]
    alpha *= word["opacity"]
    ink = (1 - alpha) * ground + alpha * np.array(rgb)
    low, high = sorted((luminance(ground), luminance(ink)))
    return (high + 0.05) / (low + 0.05)


def test_contrast_is_that_of_the_standard():
    def word(ink, ground, opacity=1.0):
        return {"colour": [*ink, 1], "grounds": [[*ground, 1]], "opacity": opacity}

    assert contrast(word([0, 0, 0], [255, 255, 255])) == pytest.approx(21.0)
    assert contrast(word([0x77] * 3, [255] * 3)) == pytest.approx(4.48, abs=0.005), "the well-known grey that fails"
    assert contrast(word([0, 0, 0], [255] * 3, 0.0)) == pytest.approx(1.0)


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    """Two runs with everything that has words: every share of a heat map, failures, warnings, intervals, gradients."""
    root = tmp_path_factory.mktemp("colours")
    shares = [
        cell_of(f"fault-{k}", steps=({**STEP[0], "fault": f"fault_{k}"},), mean_ap=k / 20, nds=0.025 * k)
        for k in range(21)
    ]
    failed = cell_of("broken", steps=({**STEP[0], "fault": "broken"},), error="ValueError: no LiDAR")
    warned = cell_of(
        "idle", steps=({**STEP[0], "fault": "idle"},), warning="changed nothing", seen_in_training="family"
    )
    alone = cell_of("only-one-has-it", steps=STEP, regret={"regret": 0.1, "router_loss": 0.6, "oracle_loss": 0.5,
                    "router_gflops": 3.0, "oracle_gflops": 2.9, "num_routes": 7})  # fmt: skip
    for name, own in (("one", [*cells(0.4), *shares, failed, warned]), ("two", [*cells(0.45, "fault"), alone])):
        for cell in own:
            append_cell(root / name / "robustness.jsonl", cell)
        (root / name / "config.yaml").write_text("data: {version: v1.0-town, val_split: town_val}\n")
    gradients_file(root / "one")
    part = {
        "num_labels": 31,
        "recall_2m": 0.6,
        "recall_4m": 0.7,
        "nds": 0.2,
        "mean_ap": 0.3,
        "mean_ap_of_labelled": 0.4,
    }
    curve = {"precision_recall": {"car": {"2": [1.0] * 101}}, "by_distance": {"0-20 m": part}}
    interval = {"nds": {"low": 0.39, "high": 0.41}}
    write_metrics(root / "one" / "metrics.json", metrics_of(0.5, 0.4), breakdown=curve, intervals=interval)
    page = write_report(root / "one", [root / "two"], root / "both.html")
    browser = Browser(root)
    browser.open(page)
    yield browser
    browser.close()


def test_choosing_a_run_shows_what_is_its_own(browser):
    titles = "[...document.querySelectorAll('section:not([hidden]) > h2')].map(h => h.innerText)"
    first = browser.run(titles)
    assert "Who learns" in first
    assert "Regret against the oracle" not in first, "only the other run has it"
    browser.run("document.querySelector('#runs-switch button[data-run=\"1\"]').click()")
    second = browser.run(titles)
    assert "Who learns" not in second
    assert "Regret against the oracle" in second
    assert {"Runs side by side", "Faults by severity", "When a sensor fails on the way"} <= {*first} & {*second}
    visible = VISIBLE.replace("#scores", "table.scores").replace("!r.hidden", "r.checkVisibility()")
    assert sorted(line.split("\t")[0].split("  ")[0] for line in browser.run(visible))[0].startswith("all sensors")
    assert len(browser.run(visible)) == 5
    browser.run("filter.value = 'fog'; filter.dispatchEvent(new Event('input'))")
    assert browser.run("document.getElementById('shown').textContent") == "2 of 5 rows"
    browser.run("filter.value = ''; filter.dispatchEvent(new Event('input'))")
    browser.run("document.querySelector('#runs-switch button').click()")
    assert browser.run(titles) == first


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 390])
def test_words_stand_out(browser, scheme, width):
    browser.send("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])
    metrics = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 600}
    browser.send("Emulation.setDeviceMetricsOverride", **metrics)
    ground = browser.run("getComputedStyle(document.documentElement).backgroundColor")
    assert ground == {"light": "rgb(251, 251, 250)", "dark": "rgb(14, 18, 23)"}[scheme]
    words = browser.run(WORDS)
    kinds = {word["name"].partition(".")[0].lower() for word in words}
    assert {"p", "h2", "th", "td", "text", "button", "figcaption", "h3"} <= kinds
    faint = {(w["name"], w["text"], round(contrast(w), 2)) for w in words if contrast(w) < LEAST}
    assert not faint
    assert browser.run("document.documentElement.scrollWidth") <= width


def test_a_faint_colour_is_found(browser):
    """The check above can fail."""
    browser.send("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": "light"}])
    browser.run("document.documentElement.style.setProperty('--soft', '#8a94a0')")
    faint = [word["name"] for word in browser.run(WORDS) if contrast(word) < LEAST]
    browser.run("document.documentElement.style.removeProperty('--soft')")
    assert any(name.startswith("text") for name in faint), "words of a chart"
    assert any(name.startswith("P.lead") for name in faint)


def test_no_error_with_several_runs(browser):
    words = ("Runtime.exceptionThrown", "Log.entryAdded", "Runtime.consoleAPICalled")
    assert [event for event in browser.events if event["method"] in words] == []
