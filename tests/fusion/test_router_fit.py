"""A router fitted to measured routes: the objective by hand, the table against the plain model, a rule to be found."""

import copy
import json
import math

import pytest
import torch

from fusion.checkpoint import model_weights, with_weights_of
from fusion.cli import main
from fusion.commands.router import with_new_router
from fusion.commands.runs import open_run
from fusion.efficiency.router_fit import (
    RouteLosses,
    RouterFit,
    check_fit,
    fit_router,
    measure_route_losses,
    route_totals,
)
from fusion.heads.losses import LOSS_WEIGHTS
from fusion.heads.targets import center_targets
from fusion.routed_steps import sample_losses
from fusion.routing.plan import FULL, LITE, SKIP
from fusion.routing.router import Glance
from fusion.routing.supervision import expected_route_loss
from tests.fusion.remembering_model import scorable_small_set
from tests.fusion.routed_run import SMALL_SET, write_routed_run


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory):
    folder = tmp_path_factory.mktemp("router-fit")
    scorable_small_set(folder / "town")
    return write_routed_run(folder / "run", folder / "town", *SMALL_SET, "faults=demo")


def test_the_expected_loss_and_its_gradient_by_hand():
    """Scores ln 3 and 0 give probabilities 3/4 and 1/4; the third route does not fit, the second sample has none."""
    totals = torch.tensor([[math.log(3.0), 0.0, 9.0], [1.0, 2.0, 3.0]], requires_grad=True)
    losses = torch.tensor([[2.0, 6.0, 0.0], [5.0, 5.0, 5.0]])
    fits = torch.tensor([[True, True, False], [False, False, False]])
    found = expected_route_loss(totals, losses, fits)
    assert found.item() == pytest.approx(0.75 * 2 + 0.25 * 6)
    found.backward()
    by_hand = [[0.75 * (2 - 3), 0.25 * (6 - 3), 0.0], [0.0, 0.0, 0.0]]
    torch.testing.assert_close(totals.grad, torch.tensor(by_hand))


def test_measured_losses_are_those_of_the_plain_model(run_dir):
    opened = open_run(run_dir, [], [])
    model = opened.model
    batches = list(opened.data.evaluation_loader("small_train", opened.data.injector, batch_size=1))
    table = measure_route_losses(model, batches, num_random=3, seed=1)
    assert len(table) == len(batches)
    assert table.counts.any(dim=1).all()
    counts = [len(center_targets(batch.boxes, 1, model.head.grid).sample) for batch in batches]
    mean_boxes = max(sum(counts) / len(counts), 1.0)
    for row, batch in enumerate(batches):
        available = model.available(batch)
        absent = ~available[0]
        assert (table.choice[row][:, absent] == SKIP).all()
        for route in (0, table.num_static // 2, -1):
            if not table.counts[row, route]:
                continue
            choice = table.choice[row, route][None]
            with torch.no_grad():
                plain = model(batch, plan=model.plan_of(choice, available))
            expected = float(sample_losses(plain, batch, model, LOSS_WEIGHTS)) * max(counts[row], 1) / mean_boxes
            assert float(table.losses[row, route]) == pytest.approx(expected, rel=1e-4)
            assert float(table.cost[row, route]) == pytest.approx(float(model.prices().cost_of(choice)))
        kept = table.choice[row][table.counts[row]]
        assert len(torch.unique(kept, dim=0)) == len(kept)
        assert (kept != SKIP).any(dim=1).all()


def test_a_rule_that_the_health_tells_is_found_and_nothing_else_moves(run_dir):
    """Samples whose first channel is sick lose less with the LiDAR, the others with the cameras: same cost bound."""
    opened = open_run(run_dir, [], [])
    model = with_new_router(opened.model, opened.config.model, seed=0)
    table, sick = _two_kinds(model, 40)
    fitted = copy.deepcopy(model)
    fit_router(fitted, table, RouterFit(steps=300, batch_size=32, learning_rate=3e-2))
    budget = torch.ones(40, dtype=torch.float64)
    with torch.no_grad():
        best = route_totals(fitted, table, budget).argmax(dim=1)
    assert best.tolist() == sick.long().tolist()
    for name, value in model.state_dict().items():
        same = torch.equal(value, fitted.state_dict()[name])
        assert same or name.startswith("router."), name
    again = copy.deepcopy(model)
    fit_router(again, table, RouterFit(steps=300, batch_size=32, learning_rate=3e-2))
    assert all(torch.equal(a, b) for a, b in zip(fitted.parameters(), again.parameters(), strict=True))
    (check,) = check_fit(model, fitted, table, table, [1.0])
    assert (check.after, check.least, check.num_routes) == (1.0, 1.0, 2)
    assert check.static == pytest.approx(2.0)  # either route is wrong for half of the samples: (1 + 3) / 2


def test_weights_are_replaced_in_the_average_too():
    checkpoint = {
        "state_dict": {"model.a": torch.zeros(2), "model.b": torch.zeros(2)},
        "callbacks": {"WeightAverage": {"num_updates": 3, "average": {"a": torch.ones(2), "b": torch.ones(2)}}},
    }
    changed = with_weights_of(checkpoint, {"a": torch.full((2,), 7.0)})
    assert model_weights(changed)["a"].tolist() == [7.0, 7.0]
    assert model_weights(changed)["b"].tolist() == [1.0, 1.0]
    assert model_weights(checkpoint)["a"].tolist() == [1.0, 1.0]
    with pytest.raises(ValueError, match="got c; give"):
        with_weights_of(checkpoint, {"c": torch.zeros(1)})


def test_the_command_writes_a_run_with_a_new_router_alone(run_dir, tmp_path, capsys):
    before = (run_dir / "checkpoints" / "last.ckpt").read_bytes()
    out = tmp_path / "fitted"
    assert main(["router", f"run={run_dir}", f"out={out}", "samples=5", "steps=3", "seed=2"]) == 0
    assert "one route for all" in capsys.readouterr().out
    assert (run_dir / "checkpoints" / "last.ckpt").read_bytes() == before
    old, new = open_run(run_dir, [], []).model.state_dict(), open_run(out, [], []).model.state_dict()
    moved = {name for name in old if not torch.equal(old[name], new[name])}
    assert moved
    assert all(name.startswith("router.") for name in moved)
    about = json.loads((out / "router.json").read_text())
    assert (about["samples"], about["steps"], about["faults"], len(about["held_out"])) == (5, 3, "training", 5)
    assert main(["router", f"run={run_dir}", f"out={out}"]) == 2
    assert "expected a new folder" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        (["steps=0"], "expected steps and batch_size of at least 1"),
        (["model.router.floor=[LIDAR]"], "the new run keeps all others"),
        (["samples=-1"], "expected run=RUN out=NEW_FOLDER"),
        (["faults=nonsense"], "nonsense"),
    ],
)
def test_mistakes_are_one_line_and_write_nothing(run_dir, tmp_path, capsys, extra, message):
    assert main(["router", f"run={run_dir}", f"out={tmp_path / 'new'}", *extra]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert len(error.strip().splitlines()) == 1
    assert not (tmp_path / "new").exists()


def test_a_run_without_faults_has_none_to_teach_by(tmp_path, capsys):
    scorable_small_set(tmp_path / "town")
    run = write_routed_run(tmp_path / "run", tmp_path / "town", *SMALL_SET)
    assert main(["router", f"run={run}", f"out={tmp_path / 'new'}"]) == 2
    assert "trained with faults for faults=training, got one without" in capsys.readouterr().err


def _two_kinds(model, count: int) -> tuple[RouteLosses, torch.Tensor]:
    """Every second sample is sick; route 0 runs the cameras, route 1 the LiDAR, and either is right for one kind."""
    sick = torch.arange(count) % 2 == 1
    size = (6, 3, 4, 6)
    health = torch.zeros(count, 12, model.router.channel.in_features - 17)
    health[sick, 0, 0] = 1.0
    available = torch.ones(count, 8, dtype=torch.bool)
    glance = Glance(
        health, torch.zeros(count, *size), torch.zeros(count), torch.ones(count, 12, dtype=torch.bool), available
    )
    choice = torch.tensor([[FULL] * 6 + [SKIP, SKIP], [SKIP] * 6 + [FULL, LITE]]).expand(count, -1, -1).clone()
    choice[:, 1, 7] = SKIP
    losses = torch.where(sick[:, None], torch.tensor([3.0, 1.0]), torch.tensor([1.0, 3.0])).double()
    cost = torch.full((count, 2), 0.1, dtype=torch.float64)
    scenes = tuple(f"scene-{number}" for number in range(count))
    counts = torch.ones(count, 2, dtype=torch.bool)
    return RouteLosses(glance, choice, counts, losses, cost, scenes, num_static=2), sick
