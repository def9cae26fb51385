"""What a user may get wrong about exits, tokens and budgets: one clear line each, exit code 2."""

import json
from pathlib import Path

import pytest
import torch

from fusion.adaptive.allocation import SharedBudget, bounded_route
from fusion.adaptive.files import FILE, write_shared_budget
from fusion.cli import main
from fusion.commands.adaptive import Options, checked_budgets
from fusion.commands.compose import compose, instantiate
from fusion.stages import Stage
from fusion.task import FusionTask
from tests.fusion.adaptive_toys import adaptive_model
from tests.fusion.remembering_model import scorable_small_set
from tests.fusion.routed_run import SMALL_SET, write_routed_run

VIT = "{_target_: fusion.encoders.vit.VitViewEncoder, backbone: resnet18, channels: 48, num_depths: 40, "
VIT += "method: {_target_: fusion.encoders.vit_tokens.EVit, keep: 0.5}}"
EVIT = "{_target_: fusion.encoders.vit_tokens.EVit, at: [20], keep: 0.7}"
DYNAMIC = "{_target_: fusion.encoders.vit_learned.DynamicVit, dim: 95, at: [2, 4]}"
TEACHER = "{_target_: fusion.encoders.vit_teacher.TokenTeacher, weights: own}"
NO_TOKENS = "expected no {} in the convolutional ViewEncoder, which has no tokens, got {}; use fusion.encoders.vit."
NO_TOKENS += "VitViewEncoder (model=tiny_vit), or remove it"
FEW = (*SMALL_SET, "data.lidar_sweeps=1", "data.radar_sweeps=1")


@pytest.fixture(scope="module")
def town(tmp_path_factory) -> Path:
    """Seven samples."""
    return scorable_small_set(tmp_path_factory.mktemp("small")).root


@pytest.fixture(scope="module")
def run(town, tmp_path_factory) -> Path:
    """A run with a router."""
    return write_routed_run(tmp_path_factory.mktemp("runs") / "run", town, *FEW)


def mistake(arguments: list[str], capsys) -> str:
    assert main(arguments) == 2
    text = capsys.readouterr().err.strip()
    assert "\n" not in text
    return text


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["model=tiny_adaptive", "model.exits.exits.1.after=1"], "expected exits after stages 0 to 0 of 2"),
        (["model=tiny_adaptive", "model.exits.exits.1.in_channels=32"], "64 channels"),
        (["model=tiny_adaptive", "model.exits.first_group=[]"], "expected first_group with an exit"),
        (["model=tiny_adaptive", "model.trunk.tokens.channels=64"], "expected tokens of the last stage's 96"),
        (["model=tiny_adaptive", "model.trunk.tokens.window=7"], "multiples of the window 7"),
        (["model=tiny_adaptive", "+model.trunk.tokens.keep=0.5"], "free rate"),
        (["model=tiny", "+model.camera_guide=lidar"], "VitViewEncoder with method GuidedKeep"),
        (["model=tiny", f"+model.cameras.encoder.method={EVIT}"], NO_TOKENS.format("token method", "EVit")),
        (["model=tiny", f"+model.cameras.encoder.teacher={TEACHER}"], NO_TOKENS.format("teacher", "TokenTeacher")),
        (["model=tiny_vit", f"model.cameras.encoder.method={EVIT}"], "expected at of EVit among the blocks of the ViT"),
        (["model=tiny_vit", f"model.cameras.encoder.method={DYNAMIC}"], "expected dim of DynamicVit to be 96"),
        (["model=tiny_exits", "model.exits.exits=[]"], "expected at least one exit, got exits: []; add"),
        (
            ["model=tiny_exits", "model.exits.exits.0.after=-3"],
            "or after -1 (the first group of sensors), got after: -3",
        ),
        (["model=tiny", "+model.lidar.keep_regions=0.5"], "below 1 with regions"),
        (
            ["model=tiny", "~model.cameras.encoder", f"+model.cameras.encoder={VIT}"],
            "expected a Vision Transformer of timm for a token method, got 'resnet18'",
        ),
    ],
)
def test_models_that_do_not_fit(overrides, message, capsys):
    assert message in mistake(["summary", *overrides], capsys)


def test_a_token_method_on_a_convolutional_backbone():
    node = {"_target_": "fusion.encoders.vit.VitViewEncoder", "backbone": "resnet18", "channels": 8, "num_depths": 4}
    node |= {"image_size_px": [32, 64], "method": {"_target_": "fusion.encoders.vit_tokens.ToMe", "merged": 2}}
    from hydra.errors import InstantiationException

    with pytest.raises(InstantiationException) as error:
        instantiate(node)
    assert "expected a Vision Transformer of timm for a token method, got 'resnet18'" in str(error.value.__cause__)


@pytest.mark.parametrize("budget", [0.05, 1.3])
def test_budgets_that_cannot_be_calibrated(budget):
    with pytest.raises(ValueError, match=r"expected budgets in \[0.4000, 1\]"):
        checked_budgets(Options(budgets=[budget]), 0.4)
    with pytest.raises(ValueError, match="cap"):
        checked_budgets(Options(cap=0.1), 0.4)
    assert checked_budgets(Options(), 0.5) == [0.55, 0.7, 0.85, 1.0]


def test_the_least_budget_counts_every_exit():
    model = adaptive_model()
    always = model.prices().always
    heads = sum(model.exits.exit_gflops)
    assert always["exits"] == pytest.approx(heads + always["merge"])
    cheapest = min(min(branches.values()) for branches in model.prices().units)
    assert model.min_budget == pytest.approx((sum(always.values()) + cheapest) / model.prices().full_gflops)


def test_a_stage_that_trains_nothing():
    with pytest.raises(ValueError, match="stage 'idle': expected something to train"):
        FusionTask(adaptive_model(), [Stage("idle", 1.0, trainable=())])


def test_training_with_a_stage_that_trains_nothing(town, tmp_path, capsys):
    words = [f"data.root={town}", *FEW, "data.num_workers=0", f"run_dir={tmp_path / 'run'}"]
    message = mistake(["train", "stages=full", "+stages.stages.0.trainable=[]", *words], capsys)
    assert message == "dynfusion train: stage 'full': expected something to train; got trainable=[]"
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("budget", ["1.3", "0.01"])
def test_budgets_that_no_model_can_keep(budget, run, capsys):
    message = mistake(["evaluate", f"run={run}", f"budget={budget}", "device=cpu"], capsys)
    assert message.startswith("dynfusion evaluate: expected a budget in [")
    assert f", got {budget}; ask for" in message
    assert not (run / "metrics.json").exists()


def test_budgets_are_looked_at_where_the_route_is_not_the_routers(tmp_path, capsys):
    scorable_small_set(tmp_path / "set")
    fixed = write_routed_run(tmp_path / "run", tmp_path / "set", *SMALL_SET, "stages=full")
    message = mistake(["evaluate", f"run={fixed}", "budget=1.3", "device=cpu"], capsys)
    assert message.startswith("dynfusion evaluate: expected a budget in [")


def test_settings_that_were_found_for_other_weights(run, capsys):
    """All else fits: a router alone, one allocation."""
    write_shared_budget(run / FILE, SharedBudget([bounded_route(1.0)], (), "0123456789abcdef"), "v1.0-small", 7)
    try:
        message = mistake(["evaluate", f"run={run}", "device=cpu"], capsys)
    finally:
        (run / FILE).unlink()
    assert message.startswith("dynfusion evaluate: expected settings calibrated on this checkpoint (")
    assert message.endswith("got those of 0123456789abcdef; calibrate again: dynfusion adaptive run=RUN")
    assert not (run / "metrics.json").exists()


def test_keys_that_are_not_there_yet(capsys):
    """A misspelt key, and one that must be added with a plus."""
    message = mistake(["summary", "model=tiny", "model.cameras.encoder.image_size_px=[64,176]"], capsys)
    assert message == (
        "dynfusion summary: Key 'image_size_px' is not in struct; check its spelling, or write + before a key that is "
        "new: +model.cameras.encoder.image_size_px=..."
    )
    assert "or write + before a key that is new: +modle=..." in mistake(["summary", "modle=tiny"], capsys)


def test_runs_and_merges_that_are_not_there(tmp_path, capsys):
    assert "expected run=RUN or merge" in mistake(["adaptive"], capsys)
    assert "expected a run folder" in mistake(["adaptive", f"run={tmp_path}"], capsys)
    assert "expected an ablation" in mistake(["adaptive", f"merge=[{tmp_path}]"], capsys)
    assert "expected an ablation" in mistake(["adaptive", f"run={tmp_path}", "controls=true"], capsys)


def test_merging_runs(tmp_path, capsys):
    cell = {"mix": "router", "budget": 0.5, "share": 0.4, "gflops": 1.0, "most": 0.5, "ms": 10.0, "mean_ap": 0.2}
    cell |= {"left": [0.0, 0.25, 0.75], "tokens": None, "views": 2.0}
    for name, nds in (("a", 0.3), ("b", 0.34)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "ablation.json").write_text(json.dumps({"cells": [{**cell, "nds": nds}]}))
    out = tmp_path / "table.md"
    assert main(["adaptive", f"merge=[{tmp_path / 'a'},{tmp_path / 'b'}]", f"out={out}"]) == 0
    row = "| 0.50 | router | 0.320 ± 0.020 | 0.200 ± 0.000 | 0.400 ± 0.000 | 1.00 ± 0.00 | 10.0 ± 0.0 | 0.25 ± 0.00 | "
    assert row in Path(out).read_text()
    rows = [json.loads(line) for line in out.with_suffix(".jsonl").read_text().splitlines()]
    wanted = {"run": "a", "table": "ablation", **cell, "nds": 0.3, "left_early": 0.25}
    del wanted["left"]
    assert rows == [wanted, {**wanted, "run": "b", "nds": 0.34}]
    held_out = [{"asked": 0.5, "mean": 0.49, "verdict": "within"}]
    (tmp_path / "b" / "adaptive.json").write_text(json.dumps({"held_out": held_out, "allocations": [{}]}))
    assert main(["adaptive", f"merge=[{tmp_path / 'a'},{tmp_path / 'b'}]", f"out={out}"]) == 0
    assert json.loads(out.with_suffix(".jsonl").read_text().splitlines()[-1]) == {
        "run": "b",
        "table": "held_out",
        **held_out[0],
    }
    capsys.readouterr()
    assert "expected out=FILE.md" in mistake(["adaptive", f"merge=[{tmp_path / 'a'}]", "out=table.jsonl"], capsys)


def test_the_shipped_stages_fit_the_shipped_model_alone():
    stages = compose(["model=tiny_adaptive", "stages=adaptive"])
    torch.manual_seed(0)
    task = instantiate(stages.stages, _partial_=True)(model=instantiate(stages.model), seed=0)
    assert {"exits", "tokens", "router"} <= set(task.loss_weights)
    trained = [name for name, _ in task.model.named_parameters() if task.curriculum.stages[-1].trains(name)]
    assert {name.split(".")[0] for name in trained} == {"router", "exits", "trunk"}
    assert all("selectors" in name for name in trained if name.startswith("trunk"))
