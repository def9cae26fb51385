"""``dynfusion evaluate submission=FILE``: scores of anybody's file, and one line for every mistake in it."""

import json

import pytest

from fusion.cli import main
from fusion.scoring.metrics import Metrics
from fusion.scoring.scorer import Scorer
from fusion.scoring.submission import SubmissionMeta, labels_as_detections, write_submission
from tests.fusion.remembering_model import scorable_small_set


@pytest.fixture(scope="module")
def perfect(tmp_path_factory):
    """A small data set, and its labels as a submission."""
    data = scorable_small_set(tmp_path_factory.mktemp("small"))
    frames = data.frames("small_train")
    detections = labels_as_detections(frames[row] for row in range(len(frames)))
    path = data.root / "perfect.json"
    write_submission(path, detections, Scorer(data.root, data.version, "small_train").tokens, SubmissionMeta())
    return data, path


def evaluate(perfect, *more: str, submission=None) -> int:
    data, path = perfect
    where = [f"data.root={data.root}", f"data.version={data.version}", "split=small_train"]
    return main(["evaluate", f"submission={submission or path}", *where, *more])


def test_a_perfect_submission(perfect, tmp_path, capsys):
    assert evaluate(perfect, f"out={tmp_path / 'ours.json'}", "draws=5") == 0
    printed = capsys.readouterr().out
    assert "car" in printed
    assert "NDS" in printed
    assert evaluate(perfect, f"out={tmp_path / 'official.json'}", "official=true", "draws=0") == 0
    ours, official = (json.loads((tmp_path / f"{name}.json").read_text()) for name in ("ours", "official"))
    metrics, judged = Metrics.from_json(ours["metrics"]), Metrics.from_json(official["metrics"])
    assert metrics.class_ap["car"] == pytest.approx(1)
    assert metrics.class_ap == pytest.approx(judged.class_ap, abs=1e-9)
    assert (metrics.nds, metrics.tp_errors) == (
        pytest.approx(judged.nds, abs=1e-9),
        pytest.approx(judged.tp_errors, abs=1e-9),
    )
    assert (ours["official"], official["official"], official["intervals"]) == (False, True, None)
    assert ours["breakdown"]["by_road_user"]["pedestrians"]["mean_ap"] == pytest.approx(1)
    assert ours["intervals"]["nds"]["low"] <= metrics.nds


def test_mistakes_end_in_one_line(perfect, tmp_path, capsys):
    content = json.loads(perfect[1].read_text())
    token = next(token for token, boxes in content["results"].items() if boxes)
    content["results"][token][0]["detection_name"] = "van"
    broken = tmp_path / "broken.json"
    broken.write_text(json.dumps(content))
    del content["results"][token]
    lacking = tmp_path / "lacking.json"
    lacking.write_text(json.dumps(content))
    for path, told in ((broken, "got 'van'"), (lacking, "1 missing"), (tmp_path / "none.json", "none.json")):
        assert evaluate(perfect, submission=path) == 2
        error = capsys.readouterr().err
        assert error.count("\n") == 1
        assert told in error
    good = json.loads(perfect[1].read_text())
    box = good["results"][token][0]
    harmed = {
        "a unit quaternion": [{**box, "rotation": [2, 0, 0, 0]}],
        "a finite translation": [{**box, "translation": [float("inf"), 0, 0]}],
        "no infinity": [{**box, "velocity": [float("inf"), 0]}],
        "at most 500 boxes": [box] * 501,
    }
    for told, boxes in harmed.items():
        broken.write_text(json.dumps({**good, "results": {**good["results"], token: boxes}}))
        assert evaluate(perfect, submission=broken) == 2
        error = capsys.readouterr().err
        assert error.count("\n") == 1
        assert told in error
    text, key = json.dumps(good), f'"{token}": '
    broken.write_text(text.replace(key, f"{key}[], {key}", 1))
    assert evaluate(perfect, submission=broken) == 2
    assert f"got sample {token} twice" in capsys.readouterr().err
    assert evaluate(perfect, "run=somewhere") == 2
    assert "got both" in capsys.readouterr().err
    assert evaluate(perfect, "draws=-1") == 2
    assert "draws=0" in capsys.readouterr().err
