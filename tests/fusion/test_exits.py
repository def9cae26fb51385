"""Early exits in the trunk: who leaves, who comes back where, what it costs, and where gradients go."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fusion.commands.compose import compose, instantiate
from fusion.heads.center import CenterHead, HeadOutput
from fusion.heads.targets import center_targets
from fusion.routing.dispatch import Dispatch
from fusion.routing.plan import FULL, ExecutionTrace
from fusion.trunk.exits import EarlyExits, ExitHead, scaled_gradient
from fusion.trunk.exits_combine import Boosted, GeometricEnsemble, MeanProbability
from fusion.trunk.exits_losses import JointLoss
from fusion.trunk.exits_policies import LearnedGate, Patience
from sensors.boxes import DETECTION_NAMES
from sensors.rig import LIDAR, NUM_CAMERAS, RADARS
from tests.fusion.exit_toys import Scripted, exit_model
from tests.fusion.random_batch import random_batch
from tests.fusion.small_model import PILLARS, small_batch
from tests.fusion.test_dispatch import assert_equal_outputs, maps_of

MODEL = exit_model((0, 1))
GROUPED = exit_model((-1, 0), first_group=["lidar", "radar"])
BATCH = small_batch(4)


def run(model, policy, execution="sparse", thresholds=(0.5, 0.5), batch=BATCH):
    del model.exits.policy  # a gate is a submodule, a script is not
    model.exits.policy, model.exits.thresholds = policy, tuple(thresholds)
    with torch.no_grad():
        return model(batch, plan=model.full_plan(batch), execution=execution)


@torch.no_grad()
def test_an_infinite_threshold_is_full_depth():
    plain = exit_model((0, 1))
    plain.exits.set_thresholds([math.inf, math.inf])
    output = plain(BATCH, plan=plain.full_plan(BATCH))
    merged = plain.merge(plain._run_units(BATCH, _dispatch(plain, BATCH))[0], len(BATCH))
    expected = plain.head(plain.trunk(merged))
    for name, value in maps_of(expected).items():
        assert torch.equal(value, maps_of(output.head)[name]), name
    assert output.exits.exit_of.tolist() == [2] * 4
    # Heads that nobody can leave at do not run.
    assert "exits" not in {e.branch for e in output.trace.executions}


def _dispatch(model, batch):
    plan = model.full_plan(batch)
    return Dispatch.of(plan, model.available(batch), model.prices().exists(), "sparse")


@pytest.fixture(scope="module")
def answers():
    """What every exit says of every sample, nobody leaving."""
    MODEL.exits.observing = True
    output = run(MODEL, Patience(), thresholds=(math.inf, math.inf))
    MODEL.exits.observing = False
    return output.exits.outputs


@settings(max_examples=12, derandomize=True)
@given(st.lists(st.integers(0, 2), min_size=4, max_size=4))
def test_rows_come_back_in_order_for_every_pattern(answers, pattern):
    table = [[1.0 if left == number else 0.0 for left in pattern] for number in range(2)]
    output = run(MODEL, Scripted(table))
    assert output.exits.exit_of.tolist() == pattern
    for row, number in enumerate(pattern):
        one = slice(row, row + 1)
        assert_equal_outputs(answers[number].select(one), output.head.select(one))


@pytest.mark.parametrize("model", [MODEL, GROUPED], ids=["trunk", "group"])
@pytest.mark.parametrize("options", [{}, {"combine": MeanProbability([1, 2, 3])}, {"combine": Boosted()}])
def test_sparse_is_masked(model, options):
    model.exits.combine = options.get("combine")
    policy = LearnedGate(2)
    with torch.no_grad():
        for layer in policy.layers:
            layer.weight.copy_(torch.tensor([[3.0, -2.0, 1.0, 0.5]]))
    scores = run(model, policy, thresholds=(math.inf, math.inf), execution="masked").exits.scores
    thresholds = scores.sort(dim=0).values[1:3].mean(dim=0).tolist()  # half leave at the first
    sparse, masked = (run(model, policy, name, thresholds) for name in ("sparse", "masked"))
    assert sparse.exits.exit_of.tolist() == masked.exits.exit_of.tolist()
    assert len(set(sparse.exits.exit_of.tolist())) > 1
    assert_equal_outputs(sparse.head, masked.head)
    model.exits.combine = None


def test_what_has_left_is_not_computed():
    """A spy counts the rows that enter every part; the trace says the same, and its cost is the sum of the parts."""
    seen = {}

    def count(name):
        return lambda module, given: seen.__setitem__(name, len(given[0]))

    parts = {"stage0": MODEL.trunk.stages[0], "stage1": MODEL.trunk.stages[1], "stage2": MODEL.trunk.stages[2]}
    parts |= {"exit0": MODEL.exits.heads[0].head, "exit1": MODEL.exits.heads[1].head, "last": MODEL.head}
    handles = [part.register_forward_pre_hook(count(name)) for name, part in parts.items()]
    output = run(MODEL, Scripted([[0, 1, 0, 0], [1, 0, 0, 1]]))
    for handle in handles:
        handle.remove()
    assert seen == {"stage0": 4, "stage1": 3, "stage2": 1, "exit0": 4, "exit1": 3, "last": 1}
    trunk = [(e.rows, e.gflops_per_row) for e in output.trace.executions if e.branch == "trunk"]
    assert [rows for rows, _ in trunk] == [(0, 1, 2, 3), (0, 2, 3), (2,), (2,)]
    assert sum(gflops for _, gflops in trunk) == pytest.approx(MODEL.trunk.gflops((16, 16)))
    always = MODEL.prices().always
    own = [sum(e.gflops_per_row for e in output.trace.executions if e.unit == "always" and 2 in e.rows)]
    assert own == [pytest.approx(sum(always.values()) - always["router"])]


def test_everybody_may_leave_at_the_first_exit():
    output = run(MODEL, Scripted([[1, 1, 1, 1], [0, 0, 0, 0]]))
    assert output.exits.exit_of.tolist() == [0] * 4
    assert not {"head"} & {e.branch for e in output.trace.executions}


def test_a_score_of_nan_stays():
    output = run(MODEL, Scripted([[math.nan] * 4, [math.nan, 1, 1, 1]]))
    assert output.exits.exit_of.tolist() == [2, 1, 1, 1]


def test_an_exit_before_the_cameras_saves_them():
    output = run(GROUPED, Scripted([[1, 0, 0, 1], [0, 1, 0, 0]]))
    assert output.exits.exit_of.tolist() == [0, 1, 2, 0]
    views = [row for e in output.trace.executions if e.unit.startswith("CAM") for row in e.rows]
    assert sorted(set(views)) == [1, 2]
    assert output.trace.ran("LIDAR") == [True] * 4
    # Those that stay get what the model without exits gives.
    expected = run(GROUPED, Scripted([[0] * 4] * 2), thresholds=(math.inf, math.inf))
    assert_equal_outputs(expected.head.select([2]), output.head.select([2]))


def test_nobody_leaves_of_whom_the_first_sensors_saw_nothing():
    batch = small_batch(4, lost=tuple((1, name) for name in (LIDAR, *RADARS)))
    output = run(GROUPED, Scripted([[1] * 4, [0] * 4]), thresholds=(-math.inf, math.inf), batch=batch)
    assert output.exits.exit_of.tolist() == [0, 2, 0, 0]


def test_the_price_bounds_every_way():
    for model in (MODEL, GROUPED):
        always = sum(model.prices().always.values())
        for table in ([[0] * 4] * 2, [[1, 0, 0, 0], [0, 0, 1, 0]]):
            output = run(model, Scripted(table))
            for row in range(4):
                entries = (e for e in output.trace.executions if e.unit == "always" and row in e.rows)
                assert sum(e.gflops_per_row for e in entries) <= always * (1 + 1e-9)


@pytest.mark.parametrize("detach", [True, False])
def test_training_computes_every_exit_and_detached_ones_leave_the_trunk_alone(detach):
    model = exit_model((0, 1), detach=detach, thresholds=[-math.inf, -math.inf]).train()
    output = model(BATCH, plan=model.full_plan(BATCH))
    assert len(output.exits.outputs) == 3
    assert output.exits.exit_of.tolist() == [2] * 4
    sum(value.square().sum() for one in output.exits.outputs[:2] for value in maps_of(one).values()).backward()
    assert all(p.grad is not None for p in model.exits.parameters())
    assert all((p.grad is None) == detach for p in model.trunk.stages[0].parameters())
    assert all(p.grad is None for p in model.trunk.stages[2].parameters())


def test_no_parameter_is_left_without_gradient_in_training():
    """What DistributedDataParallel asks for, whoever would have left."""
    model = exit_model((-1, 1), first_group=["radar"], cascade=True, combine=GeometricEnsemble(3)).train()
    output = model(BATCH, plan=model.full_plan(BATCH), execution="masked")
    targets = center_targets(BATCH.boxes, 4, model.head.grid)
    (JointLoss()(output.exits.outputs, targets) + output.depth_loss).backward()
    assert [n for n, p in model.named_parameters() if p.grad is None and not n.startswith("router")] == []


@torch.no_grad()
def test_a_cascade_starts_silent_and_listens():
    """The last head reads its features plus a 1x1 convolution, 0 at first, of what the exit before thinks probable."""
    model = exit_model((0,), cascade=True)
    fresh = EarlyExits([ExitHead(0, 12, 8, CenterHead(8, PILLARS, channels=8))], cascade=True)
    fresh.attach(model.trunk, model.head, 12, (16, 16))
    assert not any(conv.weight.any() for conv in fresh.cascades)
    bev = torch.rand(2, 12, 16, 16, generator=torch.Generator().manual_seed(0))

    def last_heatmap():
        walk = model.exits.start(ExecutionTrace(2), bev.device, masked=True)
        return model.exits(bev, model.trunk, model.head, walk)[1].outputs[-1].heatmap

    levels = [model.trunk.stages[0](bev)]
    said = model.exits.heads[0].head(model.exits.heads[0].features(levels[0]))
    for stage in model.trunk.stages[1:]:
        levels.append(stage(levels[-1]))
    features, weight = model.trunk.neck(levels), model.exits.cascades[0].weight
    heard = torch.einsum("oc,bcyx->boyx", weight[:, :, 0, 0], said.heatmap.sigmoid())
    loud = last_heatmap()
    torch.testing.assert_close(loud, model.head(features + heard).heatmap, rtol=1e-4, atol=1e-4)
    weight.zero_()
    torch.testing.assert_close(last_heatmap(), model.head(features).heatmap, rtol=1e-4, atol=1e-4)
    assert not torch.allclose(loud, last_heatmap(), rtol=1e-2, atol=1e-2)
    assert model.exits.last_gflops["head"] == pytest.approx(model.head.gflops() + 2e-9 * 10 * 8 * 32 * 32)


def test_a_later_exit_does_not_teach_the_one_it_listens_to():
    model = exit_model((0,), cascade=True).train()
    bev = torch.rand(2, 12, 16, 16, generator=torch.Generator().manual_seed(0))
    walk = model.exits.start(ExecutionTrace(2), bev.device, masked=False)
    model.exits(bev, model.trunk, model.head, walk)[1].outputs[-1].heatmap.square().sum().backward()
    assert all(p.grad is None for p in model.exits.heads.parameters())
    assert bool(model.exits.cascades[0].weight.grad.any())


def test_gradient_equilibrium_by_counted_gradients():
    """Each shared map gets (g_head + (K - i - 1) g_trunk) / (K - i): with g = 1 everywhere, 1 at every exit."""
    num_exits = 4

    def walked(equilibrium):
        x = start = torch.ones(1, requires_grad=True)
        shared, total = [], 0.0
        for number in range(num_exits):
            left = num_exits - number
            x.retain_grad()
            shared.append(x)
            if equilibrium:
                x = scaled_gradient(x, 1 / left)
            total = total + x.sum()  # every head has a gradient of 1
            if equilibrium and left > 1:
                x = scaled_gradient(x, left - 1)
            x = x * 1.0
        total.backward()
        return [float(one.grad) for one in shared], float(start.grad)

    assert walked(True) == ([pytest.approx(1.0)] * num_exits, pytest.approx(1.0))
    assert walked(False)[0] == [4.0, 3.0, 2.0, 1.0]


def test_equilibrium_in_the_model_is_the_mean_of_heads_and_trunk():
    """Two exits: the merged map's gradient is half that of the early head plus half that of the rest."""
    grads = {}
    for equilibrium in (False, True):
        model = exit_model((0,), equilibrium=equilibrium).train()
        for which in ("early", "last"):
            bev = torch.rand(2, 12, 16, 16, generator=torch.Generator().manual_seed(0)).requires_grad_()
            walk = model.exits.start(ExecutionTrace(2), bev.device, masked=False)
            _, run_ = model.exits(bev, model.trunk, model.head, walk)
            run_.outputs[0 if which == "early" else -1].heatmap.square().sum().backward()
            grads[equilibrium, which] = bev.grad
    torch.testing.assert_close(grads[True, "early"], grads[False, "early"] / 2)
    torch.testing.assert_close(grads[True, "last"], grads[False, "last"] / 2)


def test_equilibrium_of_three_exits_by_hand():
    """The first map is multiplied by 1/3 before its head and by 2 after it, the second one by 1/2 and by 1.

    Early head: 1/3. Second head and the last one: 1/3 * 2 * 1/2. The neck reads the first map past the second exit:
    its lateral is silenced here, so that all of the last answer comes by the second map.
    """
    grads = {}
    for equilibrium in (False, True):
        model = exit_model((0, 1), equilibrium=equilibrium).train()
        torch.nn.init.zeros_(model.trunk.laterals[0].weight)
        for number in range(3):
            bev = torch.rand(2, 12, 16, 16, generator=torch.Generator().manual_seed(0)).requires_grad_()
            walk = model.exits.start(ExecutionTrace(2), bev.device, masked=False)
            _, run_ = model.exits(bev, model.trunk, model.head, walk)
            run_.outputs[number].heatmap.square().sum().backward()
            grads[equilibrium, number] = bev.grad
    for number, share in enumerate((1 / 3, (2 / 3) * (1 / 2), (2 / 3) * (1 / 2))):
        plain = grads[False, number]
        assert bool(plain.any())
        torch.testing.assert_close(grads[True, number], plain * share, rtol=1e-4, atol=1e-6 * float(plain.abs().max()))


def test_boosting_by_hand():
    """F1 = 0.5 * 1 = 0.5, F2 = 2 (2 + 0.5) = 5, F3 = 3 (4 + 5) = 27; only o_k has a gradient in F_k: rho_k."""
    said = [_constant(value) for value in (1.0, 2.0, 4.0)]
    boosted = Boosted([0.5, 2.0, 3.0])
    for number, (total, rho) in enumerate(((0.5, 0.5), (5.0, 2.0), (27.0, 3.0))):
        answer = boosted(said[: number + 1])
        for name, value in maps_of(answer).items():
            assert bool((value == total).all()), name
        own = [one.heatmap for one in said[: number + 1]]
        slopes = torch.autograd.grad(answer.heatmap.sum(), own, allow_unused=True)
        assert all(slope is None or not slope.any() for slope in slopes[:-1])
        assert bool((slopes[-1] == rho).all())
    assert bool((Boosted()(said).height == 7).all())


def _constant(value: float) -> HeadOutput:
    widths = {"heatmap": 10, "height": 1, "offset": 2, "log_size": 3, "heading": 2, "velocity": 2, "attribute": 8}
    return HeadOutput(**{n: torch.full((1, width, 2, 2), value, requires_grad=True) for n, width in widths.items()})


def test_a_boosted_model_gives_the_sums_of_its_heads():
    plain = exit_model((0, 1)).train()
    raw = [one.heatmap for one in plain(BATCH, plan=plain.full_plan(BATCH)).exits.outputs]
    plain.exits.combine = Boosted([1.0, 0.5, 2.0])
    sums = [one.heatmap for one in plain(BATCH, plan=plain.full_plan(BATCH)).exits.outputs]
    wanted = [raw[0], 0.5 * (raw[1] + raw[0]), 2 * (raw[2] + 0.5 * (raw[1] + raw[0]))]
    for found, value in zip(sums, wanted, strict=True):
        torch.testing.assert_close(found, value, rtol=1e-3, atol=1e-3)
    sums[2].sum().backward()
    assert all(p.grad is None for p in plain.exits.parameters())
    # Weak learners start as corrections: of the last biases only those of the first head stay.
    fresh = [ExitHead(place, width, 8, CenterHead(8, PILLARS, channels=8)) for place, width in ((0, 12), (1, 16))]
    heads = [*(one.head for one in fresh), CenterHead(8, PILLARS, channels=8)]
    for branch in (branch for head in heads for branch in (*head.heatmaps, *head.regressions)):
        torch.nn.init.ones_(branch[-1].bias)
    EarlyExits(fresh, combine=Boosted()).attach(plain.trunk, heads[-1], 12, (16, 16))
    biases = [[branch[-1].bias for branch in (*head.heatmaps, *head.regressions)] for head in heads]
    assert [[bool((bias == one).all()) for bias in own] for own, one in zip(biases, (1, 0, 0), strict=True)] == [
        [True] * len(own) for own in biases
    ]


def test_ensembles_by_hand():
    low, high = (output.select([0]) for output in _two_outputs())
    mean = MeanProbability([1, 3])([low, high]).heatmap.sigmoid()
    torch.testing.assert_close(mean, (low.heatmap.sigmoid() + 3 * high.heatmap.sigmoid()) / 4, rtol=1e-4, atol=1e-5)
    geometric = GeometricEnsemble(2)
    with torch.no_grad():
        geometric.log_weights[1].copy_(torch.tensor([2.0, 0.5]).log())
        geometric.biases[1] = 0.25
    p, q = low.heatmap.sigmoid().double(), high.heatmap.sigmoid().double()
    yes = p**2 * q**0.5 * math.exp(0.25)
    no = (1 - p) ** 2 * (1 - q) ** 0.5
    torch.testing.assert_close(
        geometric([low, high]).heatmap.sigmoid().double(), yes / (yes + no), rtol=1e-4, atol=1e-6
    )


def _two_outputs():
    MODEL.exits.observing = True
    outputs = run(MODEL, Patience(), thresholds=(math.inf, math.inf)).exits.outputs[:2]
    MODEL.exits.observing = False
    return outputs


@pytest.mark.parametrize(
    ("places", "options", "word"),
    [
        ((), {}, r"expected at least one exit, got exits: \[\]; add"),
        ((1, 0), {}, "rising"),
        ((2,), {}, "last"),
        ((0,), {"thresholds": [1.0, 2.0]}, "threshold"),
        ((0,), {"detach": True, "equilibrium": True}, "both"),
        ((-1,), {}, "first_group"),
        ((-1,), {"first_group": ["lidar", "radar", "camera"]}, "not all"),
        ((-1,), {"first_group": ["sonar"]}, "some"),
    ],
)
def test_user_mistakes(places, options, word):
    with pytest.raises(ValueError, match=word):
        exit_model(places, **options)


def test_an_exit_that_does_not_fit():
    model = exit_model((0,))
    for wrong in (
        ExitHead(0, 7, 8, CenterHead(8, PILLARS, channels=8)),
        ExitHead(0, 12, 8, CenterHead(8, PILLARS.coarser(2), channels=8)),
        ExitHead(0, 12, 8, CenterHead(8, model.head.grid, channels=8, class_groups=(("car",), DETECTION_NAMES[1:]))),
    ):
        with pytest.raises(ValueError, match="expected"):
            EarlyExits([wrong]).attach(model.trunk, model.head, 12, (16, 16))


def test_the_shipped_model_learns_and_leaves():
    torch.manual_seed(0)
    model = instantiate(compose(["model=tiny_exits"]).model)
    batch = random_batch(2, 0, depth_stride=8, num_points=300)
    targets = center_targets(batch.boxes, 2, model.head.grid)
    optimizer = torch.optim.Adam(model.parameters(), 2e-3)
    losses = []
    for _ in range(4):
        output = model(batch, plan=model.full_plan(batch))
        losses.append(JointLoss()(output.exits.outputs, targets))
        optimizer.zero_grad()
        losses[-1].backward()
        optimizer.step()
    assert losses[-1] < 0.8 * losses[0]
    model.eval()
    full = model(batch, plan=model.full_plan(batch)).trace.gflops()
    model.exits.set_thresholds([-math.inf, math.inf])
    early = model(batch, plan=model.full_plan(batch))
    assert early.exits.exit_of.tolist() == [0, 0]
    assert max(early.trace.gflops()) < 0.5 * min(full)
    assert (early.plan.choice[:, :NUM_CAMERAS] == FULL).all()
