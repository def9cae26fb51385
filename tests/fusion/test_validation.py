"""Scores while training against the devkit's own: the quick figure, and all of it over two ranks."""

import json
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import pytorch_lightning as pl
import torch

from fusion.heads.center import CENTERPOINT_GROUPS
from fusion.heads.targets import center_targets
from fusion.scoring.metrics import Metrics
from fusion.scoring.table import joined
from fusion.stages import Stage
from fusion.task import FusionTask
from fusion.trainer import build_trainer
from fusion.validation import DetectionScores, QuickPrecision, _key, _label_table
from sensors.boxes import DETECTION_NAMES, Boxes
from tests.fusion.devkit_oracle import no_boxes, official, split_of
from tests.fusion.random_batch import random_batch
from tests.fusion.remembering_model import scorable_small_set
from tests.fusion.test_decode import perfect_output
from tests.fusion.toy_model import ToyModel


def scene(seed: int):
    """Labels of three samples, and detections: some near labels, some anywhere."""
    labels = replace(random_batch(3, seed, image_size_px=(16, 32)).boxes)
    labels = replace(labels, label=labels.label % 3, num_points=torch.arange(12) % 5)
    rng = np.random.default_rng(seed)
    detections = []
    for row in range(3):
        own = (labels.sample == row).numpy()
        center = np.repeat(labels.center_m.numpy()[own], 3, axis=0) + rng.normal(0, 1.2, (12, 3)).astype(np.float32)
        boxes = replace(
            Boxes.empty(),
            center_m=center,
            size_lwh_m=np.ones((12, 3), np.float32),
            yaw_rad=np.zeros(12, np.float32),
            velocity_mps=np.zeros((12, 2), np.float32),
            label=np.where(rng.random(12) < 0.8, np.repeat(labels.label.numpy()[own], 3), 1),
            score=rng.random(12).astype(np.float32),
            attribute=np.full(12, -1),
            num_points=np.full(12, -1),
        )
        detections.append(boxes)
    return labels, detections


def devkit_precision(labels, detections) -> float:
    from nuscenes.eval.common.data_classes import EvalBoxes
    from nuscenes.eval.common.utils import center_distance
    from nuscenes.eval.detection.algo import accumulate, calc_ap
    from nuscenes.eval.detection.data_classes import DetectionBox

    def box(row, center, label, score):
        return DetectionBox(
            sample_token=str(row),
            translation=tuple(map(float, center)),
            size=(1.0, 1.0, 1.0),
            rotation=(1.0, 0.0, 0.0, 0.0),
            velocity=(0.0, 0.0),
            detection_name=DETECTION_NAMES[label],
            detection_score=float(score),
        )

    truth, found = EvalBoxes(), EvalBoxes()
    seen = labels.num_points > 0
    for row, boxes in enumerate(detections):
        chosen = torch.nonzero((labels.sample == row) & seen)[:, 0].tolist()
        truth.add_boxes(str(row), [box(row, labels.center_m[i], labels.label[i], -1.0) for i in chosen])
        found.add_boxes(
            str(row), [box(row, boxes.center_m[i], boxes.label[i], boxes.score[i]) for i in range(len(boxes))]
        )
    names = {DETECTION_NAMES[label] for label in labels.label[seen].tolist()}
    data = [accumulate(truth, found, name, center_distance, 2.0) for name in names]
    return float(np.mean([calc_ap(part, 0.1, 0.1) for part in data]))


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_equals_the_devkit_at_two_metres(seed):
    labels, detections = scene(seed)
    metric = QuickPrecision()
    metric.update(detections, labels)
    expected = devkit_precision(labels, detections)
    assert expected > 0.02
    assert float(metric.compute()) == pytest.approx(expected, abs=1e-6)


def test_batches_add_up():
    labels, detections = scene(4)
    whole, parts = QuickPrecision(), QuickPrecision()
    whole.update(detections, labels)
    for row in range(3):
        own = labels.sample == row
        fields = {name: getattr(labels, name)[own] for name in labels.__dataclass_fields__}
        parts.update([detections[row]], replace(labels, **{**fields, "sample": torch.zeros(int(own.sum()), dtype=int)}))
    assert parts.compute() == whole.compute()


def test_nothing_found_or_nothing_there_is_zero():
    labels, _ = scene(0)
    metric = QuickPrecision()
    assert metric.compute() == 0
    metric.update([Boxes.empty()] * 3, labels)
    assert metric.compute() == 0


def official_scores(labels, detections, tokens):
    """The devkit's, of the same boxes about a vehicle at the origin, samples in the order of their keys."""
    order = sorted(range(len(tokens)), key=lambda row: _key(tokens[row]))
    found = joined([detections[row] for row in order], range(len(order)))
    truth = _label_table(labels)
    rows = np.concatenate([np.flatnonzero(truth.sample == row) for row in order])
    truth = truth.select(rows)
    truth = replace(truth, sample=np.argsort(order)[truth.sample])
    metrics, _, _ = official(found, split_of(truth, np.zeros((len(tokens), 2)), no_boxes()), no_boxes())
    return metrics


def rounded(labels, detections):
    """Few different scores, and an unknown velocity."""
    found = [replace(boxes, score=np.round(boxes.score, 1).astype(np.float32)) for boxes in detections]
    velocity = labels.velocity_mps.clone()
    velocity[::5] = torch.nan
    return replace(labels, velocity_mps=velocity), found


@pytest.mark.parametrize("seed", [0, 1])
def test_all_scores_equal_the_devkit(seed):
    labels, detections = rounded(*scene(seed))
    tokens = [f"sample {seed} {row}" for row in range(3)]
    metric = DetectionScores()
    metric.update(detections, labels, tokens)
    expected, ours = official_scores(labels, detections, tokens), metric.metrics()
    assert ours.mean_ap == pytest.approx(expected.mean_ap, abs=1e-9)
    assert ours.mean_ap > 0.01
    assert ours.nds == pytest.approx(expected.nd_score, abs=1e-9)
    assert ours.tp_errors == pytest.approx(expected.tp_errors, abs=1e-9)
    values = metric.compute()
    assert (float(values["map"]), float(values["nds"])) == pytest.approx((ours.mean_ap, ours.nds))


def one_sample(labels, row):
    own = labels.sample == row
    fields = {name: getattr(labels, name)[own] for name in labels.__dataclass_fields__}
    return replace(labels, **{**fields, "sample": torch.zeros(int(own.sum()), dtype=int)})


def test_a_sample_seen_twice_counts_once():
    labels, detections = rounded(*scene(2))
    tokens = ["a", "b", "c"]
    whole, parts = DetectionScores(), DetectionScores()
    whole.update(detections, labels, tokens)
    for row in (2, 0, 1, 0):
        parts.update([detections[row]], one_sample(labels, row), [tokens[row]])
    assert parts.metrics() == whole.metrics()


def test_scores_of_nothing_are_zero():
    labels, _ = scene(0)
    metric = DetectionScores()
    metric.update([Boxes.empty()] * 3, labels, ["a", "b", "c"])
    assert metric.metrics().mean_ap == 0
    assert DetectionScores().metrics().nds == 0


def _one_rank(rank: int, folder: str) -> None:
    """Rank 0 sees samples 0 and 1, rank 1 samples 2 and, to fill up, 0 again."""
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    torch.set_num_threads(1)
    store = torch.distributed.FileStore(f"{folder}/store", 2)
    torch.distributed.init_process_group("gloo", store=store, rank=rank, world_size=2)
    labels, detections = rounded(*scene(2))
    metric = DetectionScores()
    for row in ((0, 1), (2, 0))[rank]:
        metric.update([detections[row]], one_sample(labels, row), [("a", "b", "c")[row]])
    with metric.sync_context(distributed_available=torch.distributed.is_initialized):
        metrics = metric.metrics()
    values = {name: float(value) for name, value in metric.compute().items()}
    Path(folder, f"{rank}.json").write_text(json.dumps([metrics.to_json(), values]))
    torch.distributed.destroy_process_group()


def test_two_ranks_equal_one(tmp_path):
    # Forked: importing torch twice more takes longer than the test.
    torch.multiprocessing.start_processes(_one_rank, (str(tmp_path),), nprocs=2, start_method="fork")
    labels, detections = rounded(*scene(2))
    whole = DetectionScores()
    whole.update(detections, labels, ["a", "b", "c"])
    for rank in (0, 1):
        metrics, values = json.loads((tmp_path / f"{rank}.json").read_text())
        assert Metrics.from_json(metrics) == whole.metrics()
        assert values == {"map": pytest.approx(whole.metrics().mean_ap), "nds": pytest.approx(whole.metrics().nds)}


class RememberingToy(ToyModel):
    """Knows the labels, with errors that are each sample's own and scores of which many are equal."""

    def forward(self, batch, budget=1.0, plan=None, execution="sparse"):
        output = super().forward(batch, budget, plan, execution)
        head = perfect_output(center_targets(batch.boxes, len(batch), self.head.grid), CENTERPOINT_GROUPS)
        head.velocity.nan_to_num_()
        for row, token in enumerate(batch.tokens):
            draw = np.random.default_rng(abs(_key(token))).normal(0, 1, 4).astype(np.float32)
            head.offset[row] += 0.12 * float(draw[0])
            head.log_size[row] += 0.1 * float(draw[1])
            head.velocity[row] += float(draw[2])
            if draw[3] > 0:
                head.heatmap[row] -= 1.0
        return replace(output, head=head)


class KeepScores(pl.Callback):
    """Writes what this rank has logged, exactly, and how many samples it was given."""

    def __init__(self, folder: Path):
        self.folder, self.num = folder, 0

    def on_validation_batch_end(self, trainer, pl_module, outputs, batch, *_) -> None:
        self.num += len(batch)

    def on_validation_end(self, trainer, pl_module) -> None:
        values = {name: float(value) for name, value in trainer.callback_metrics.items()}
        content = json.dumps({"num_samples": self.num, **values})
        (self.folder / f"rank-{trainer.global_rank}-of-{trainer.world_size}.json").write_text(content)


def test_a_two_rank_trainer_validates_as_one_process_does(tmp_path, monkeypatch):
    """Seven samples over two ranks: each gets four, so one sample is seen twice."""
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "lo")
    data = scorable_small_set(tmp_path / "small")
    torch.manual_seed(0)
    task = FusionTask(RememberingToy(), (Stage("all", 1.0, route="full"),))
    for devices, strategy in ((1, "auto"), (2, "ddp_fork")):
        trainer = build_trainer(
            tmp_path / str(devices),
            callbacks=[KeepScores(tmp_path)],
            accelerator="cpu",
            devices=devices,
            strategy=strategy,
        )
        trainer.validate(task, datamodule=data, verbose=False)
    names = ("0-of-1", "0-of-2", "1-of-2")
    one, *ranks = (json.loads((tmp_path / f"rank-{name}.json").read_text()) for name in names)
    assert one["num_samples"] == 7
    assert 0.02 < one["val/nds"] < 0.9
    for rank in ranks:
        assert rank["num_samples"] == 4
        assert (rank["val/map"], rank["val/nds"]) == (one["val/map"], one["val/nds"])
