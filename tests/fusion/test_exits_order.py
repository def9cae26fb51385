"""Whatever leaves where comes back in its place: every pattern of four samples at four exits, and the whole model."""

import copy
import math
from functools import partial
from itertools import product

import pytest
import torch
from torch import nn

from fusion.heads.center import CenterHead, HeadOutput
from fusion.routing.plan import FULL, LITE, SKIP, ExecutionTrace
from fusion.trunk.exits import EarlyExits, ExitHead
from fusion.trunk.exits_combine import MeanProbability
from fusion.trunk.trunk import BevTrunk
from sensors.grid import BevGrid
from sensors.rig import UNITS
from tests.fusion.adaptive_toys import adaptive_model
from tests.fusion.exit_toys import Scripted, one_of
from tests.fusion.small_model import small_batch
from tests.fusion.test_dispatch import assert_equal_outputs, maps_of

GRID = BevGrid.square(3.0, 1.0)
PATTERNS = list(product(range(4), repeat=4))
WIDTHS = {"heatmap": 10, "height": 1, "offset": 2, "log_size": 3, "heading": 2, "velocity": 2, "attribute": 8}
STAY = Scripted([[0.0] * 4] * 3)


class Adds(nn.Module):
    """A stage, or a neck, that adds ten."""

    def forward(self, bev):
        return bev + 10


class Says(CenterHead):
    """A head whose maps are all the number in its input, and a thousand for each exit up to its own."""

    grid = GRID

    def __init__(self, number: int):
        nn.Module.__init__(self)
        self.number = number

    def forward(self, bev):
        value = bev[:, :1] + 1000 * (self.number + 1)
        return HeadOutput(**{name: value.expand(-1, width, -1, -1) for name, width in WIDTHS.items()})


class Counts(nn.Module):
    """A trunk of three stages whose neck gives what the last stage gave."""

    def __init__(self):
        super().__init__()
        self.stages = nn.ModuleList(Adds() for _ in range(3))

    def neck(self, levels):
        return levels[-1]


def counting() -> tuple:
    """Parts whose sums can be told by heart."""
    exits = EarlyExits(
        [ExitHead(place, 4, 4, Says(k)) for k, place in enumerate((-1, 0, 1))], first_group=["radar"], num_peaks=2
    )
    for one in exits.heads:
        one.adapter = nn.Identity()
    exits.stage_gflops, exits.exit_gflops, exits.last_gflops = [1.0] * 3, [1.0] * 3, {"trunk": 0.0, "head": 1.0}
    rows = torch.arange(4.0).view(4, 1, 1, 1)
    return exits.eval(), Counts(), Says(3), rows.expand(4, 4, 6, 6)


def small(**options) -> tuple:
    """Real heads and stages over 6x6 cells, with noise in every parameter."""
    torch.manual_seed(3)
    trunk = BevTrunk(4, widths=(4, 4, 4), depths=(0, 0, 0), strides=(1, 1, 1), out_channels=4)
    heads = [ExitHead(place, 4, 4, CenterHead(4, GRID, channels=4, num_convs=0)) for place in (-1, 0, 1)]
    exits, head = EarlyExits(heads, first_group=["radar"], **options), CenterHead(4, GRID, channels=4, num_convs=0)
    exits.attach(trunk, head, 4, (6, 6))
    with torch.no_grad():
        for module in (trunk, exits, head):
            for parameter in module.parameters():
                parameter += 0.3 * torch.randn(parameter.shape)
    return exits.eval(), trunk.eval(), head.eval(), torch.rand(4, 4, 6, 6)


@torch.no_grad()
def run(parts: tuple, policy, thresholds=(0.5,) * 3, masked: bool = False) -> tuple:
    """As a model does it: the exit over the first sensors, then the trunk on what stays."""
    exits, trunk, head, bev = parts
    exits.policy, exits.thresholds = policy, thresholds
    walk = exits.start(ExecutionTrace(4), bev.device, masked)
    kept = exits.after_group(bev, torch.ones(4, dtype=torch.bool), walk)
    output, found = exits(bev if kept is None else bev[kept], trunk, head, walk)
    return output, found, walk.trace


def leaving_at(pattern) -> Scripted:
    return Scripted([[1.0 if left == number else 0.0 for left in pattern] for number in range(3)])


def test_rows_come_back_in_order_for_every_pattern():
    """All 256, exits that nobody or everybody leaves at among them: the answer of sample r that leaves at exit k is
    r + 10 for each stage before it + 1000 (k + 1), in every map; what has left enters nothing that follows."""
    parts = counting()
    for pattern in PATTERNS:
        output, found, trace = run(parts, leaving_at(pattern))
        assert found.exit_of.tolist() == list(pattern)
        wanted = [row + 10 * (0, 1, 2, 3)[left] + 1000 * (left + 1) for row, left in enumerate(pattern)]
        for name, value in maps_of(output).items():
            assert value.shape == (4, WIDTHS[name], 6, 6)
            assert bool((value == torch.tensor(wanted)[:, None, None, None]).all()), (pattern, name)
        entered = [e.rows for e in trace.executions if e.branch in ("exits", "head")]
        still = [tuple(row for row in range(4) if pattern[row] >= number) for number in range(4)]
        assert entered == [own for own in still if own]


def test_what_looks_back_finds_the_same_samples_after_others_have_left():
    """Cascading heads and ensembles read what earlier exits said of the samples that are still there."""
    parts = small(cascade=True, combine=MeanProbability([1, 2, 3, 4]))
    answers = run(parts, STAY, (math.inf,) * 3, masked=True)[1].outputs
    expected = {name: torch.stack([maps_of(one)[name] for one in answers]) for name in maps_of(answers[0])}
    for pattern in PATTERNS[5::31]:
        output, found, _ = run(parts, leaving_at(pattern))
        assert found.exit_of.tolist() == list(pattern)
        for name, value in maps_of(output).items():
            torch.testing.assert_close(value, expected[name][list(pattern), torch.arange(4)], atol=1e-4, rtol=1e-4)


MODEL = adaptive_model()


@torch.no_grad()
def test_router_exits_and_tokens_together_are_the_masked_model_and_each_sample_alone():
    """Five samples of other routes that leave at other exits, and whose cells take part in other numbers."""
    batch = small_batch(5, seed=3, lost=((3, "CAM_FRONT"),))
    generator = torch.Generator().manual_seed(5)
    choice = torch.randint(0, 3, (5, len(UNITS)), generator=generator)
    choice[:, UNITS.index("LIDAR")] = torch.tensor([FULL, LITE, FULL, SKIP, FULL])
    plan = MODEL.plan_of(choice, MODEL.available(batch))
    tokens, masked = MODEL.trunk.stages[-1][1], copy.deepcopy(MODEL)
    masked.trunk.stages[-1][1].forward = partial(masked.trunk.stages[-1][1].forward, execution="masked")
    # A lead that splits the cells, and thresholds at which two leave at the first exit and one at the second.
    MODEL.exits.set_thresholds((math.inf, math.inf))
    tokens.set_rate(-math.inf)
    MODEL(batch, plan=plan)
    lead = float(tokens.last_use.leads.median())
    scores = MODEL(batch, plan=plan, execution="masked").exits.scores
    first = scores[:, 0].sort(descending=True).values
    staying = scores[:, 0] < first[1]
    second = scores[staying, 1].sort(descending=True).values
    thresholds = tuple(float(values[place : place + 2].mean()) for values, place in ((first, 1), (second, 0)))
    for model in (MODEL, masked):
        model.exits.set_thresholds(thresholds)
        model.trunk.stages[-1][1].set_rate(lead)
    try:
        sparse = MODEL(batch, plan=plan)
        shares = tokens.last_use.shares[0]
        together = masked(batch, plan=plan, execution="masked")
        assert_equal_outputs(sparse.head, together.head)
        assert sparse.exits.exit_of.tolist() == together.exits.exit_of.tolist()
        assert torch.bincount(sparse.exits.exit_of, minlength=3).tolist() == [2, 1, 2]
        assert len({tuple(row) for row in plan.choice.tolist()}) == 5
        assert all(0 < share < 1 for share in shares.tolist())
        assert len(shares) == 2, "those that are still there"
        for row in range(5):
            alone = one_of(batch, row)
            own = MODEL(alone, plan=MODEL.plan_of(plan.choice[row : row + 1], MODEL.available(alone)))
            assert own.exits.exit_of.tolist() == [sparse.exits.exit_of[row]]
            assert_equal_outputs(own.head, sparse.head.select(torch.tensor([row])))
            assert own.trace.gflops()[0] == pytest.approx(sparse.trace.gflops()[row], rel=1e-6)
            assert own.trace.gflops()[0] < together.trace.gflops()[row]
    finally:
        MODEL.exits.set_thresholds((math.inf, math.inf))
        tokens.set_rate()


@torch.no_grad()
@pytest.mark.parametrize(("thresholds", "exit_of"), [((math.inf, 0.5), 1), ((0.5, 0.5), 0), ((math.inf, math.inf), 2)])
def test_an_exit_that_is_off_leaves_the_others_their_numbers(thresholds, exit_of):
    """As in masked execution: policies with numbers of each exit must find their own."""
    asked = []

    class Sure:
        looks_back = False

        def __call__(self, history):
            asked.append(len(history) - 1)
            return torch.ones(len(history[-1].xy_m))

    model, batch = adaptive_model(), small_batch(3)
    model.exits.policy = Sure()
    model.exits.set_thresholds(thresholds)
    plan = model.full_plan(batch)
    assert model(batch, plan=plan).exits.exit_of.tolist() == [exit_of] * 3
    assert asked == ([exit_of] if exit_of < 2 else [])
    assert model(batch, plan=plan, execution="masked").exits.exit_of.tolist() == [exit_of] * 3
