"""Camera ViTs under the shared budget: their rate is told with that of the BEV tokens, priced, capped and traced."""

import math

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from fusion.adaptive.allocation import Allocation, SharedBudget, views_of
from fusion.adaptive.observe import observe
from fusion.adaptive.search import candidates
from fusion.adaptive.settings import TokenLevel, token_levels
from fusion.encoders.lift import Lift
from fusion.encoders.vit import VitViewEncoder
from fusion.encoders.vit_learned import AVit, DynamicVit
from fusion.encoders.vit_tokens import Dense, EVit, GuidedKeep, ToMe
from fusion.model import FusionModel
from fusion.units import ViewBranches
from tests.fusion.adaptive_toys import adaptive_model, restored
from tests.fusion.small_model import BEV, IMAGE_SIZE_PX, small_batch
from tests.fusion.test_tokens_vit import DIM, IMAGES, NUM_PATCHES, SIZE, with_method

BATCHES = [small_batch(1, seed=seed) for seed in range(3)]


def view_model(method) -> FusionModel:
    """``adaptive_model`` with a small ViT as camera backbone."""
    base = adaptive_model()
    options = {"depth": 3, "embed_dim": 16, "num_heads": 2, "patch_size": 8}
    torch.manual_seed(3)
    vit = VitViewEncoder("vit_tiny_patch16_224", 8, 10, IMAGE_SIZE_PX, method, False, 8, options)
    cameras = ViewBranches(vit, Lift(BEV, 8, (1.0, 61.0), 10), IMAGE_SIZE_PX)
    return FusionModel(
        cameras, base.lidar, base.radar, base.merge, base.trunk, base.head, base.router, base.exits
    ).eval()


MODEL = view_model(EVit((1,), 0.9))


@torch.inference_mode()
def executed(allocation: Allocation, batches=BATCHES) -> list[float]:
    """Shares of samples that run one by one, as deployed."""
    MODEL.shared_budget = SharedBudget([Allocation(**{**vars(allocation), "budget": 0.5})], (), "")
    try:
        outputs = [MODEL(batch, budget=1.0) for batch in batches]
    finally:
        MODEL.shared_budget = None
    return [output.trace.gflops()[0] / MODEL.prices().full_gflops for output in outputs]


def test_what_was_observed_is_what_runs():
    levels = token_levels(MODEL, BATCHES)
    assert [one.view_rate for one in levels] == [1.0, 0.85, 0.7, 0.5]
    assert (levels[0].threshold, levels[-1].threshold) == (-math.inf, math.inf)
    found = candidates(observe(MODEL, BATCHES, (None, 0.8), (levels[0], levels[2])), num_levels=3)
    assert views_of(MODEL).rate == 1.0  # left open
    assert any(one.uses == {"router", "exits", "tokens"} for one in found)
    for one in found[:: len(found) // 6]:
        costs = executed(one.allocation)
        assert sum(costs) / len(costs) == pytest.approx(one.allocation.mean_cost, rel=1e-6)
        assert max(costs) <= one.allocation.cap + 1e-6


@pytest.fixture
def router_bias():
    """The shared model's, to be overwritten: other tests find it as it was."""
    yield from restored(MODEL.router.bias)


def test_the_cap_holds_at_every_rate_and_six_views_save_six_times(router_bias):
    """The route's bound counts views at the method's own rate, so that fewer tokens only cost less."""
    generator = torch.Generator().manual_seed(0)
    for bound in (MODEL.min_budget, 0.7, 1.0):
        with torch.no_grad():
            router_bias.copy_(100 * torch.randn(router_bias.shape, generator=generator))
        for rate in (1.0, 0.5):
            allocation = Allocation(0.5, bound, (math.inf, math.inf), view_rate=rate)
            assert max(executed(allocation, BATCHES[:1])) <= bound + 1e-6
    every, fewer = (
        executed(Allocation(0.5, None, (math.inf, math.inf), view_rate=rate), BATCHES[:1])[0] for rate in (1.0, 0.5)
    )
    vit = MODEL.cameras.encoder
    saved = 6 * (vit.block_gflops(32) - vit.block_gflops(32, 0.5)) / MODEL.prices().full_gflops
    assert every - fewer == pytest.approx(saved, rel=1e-5)
    assert saved > 0


def rated():
    torch.manual_seed(0)
    return [EVit((1, 2), 0.8), ToMe(2), DynamicVit(DIM, (1, 2), 0.8)]


@pytest.mark.parametrize("method", rated(), ids=lambda method: type(method).__name__)
@torch.no_grad()
def test_what_a_rate_saves_agrees_with_pytorch(method):
    made = with_method(method)
    own, price = made(IMAGES).context, made.gflops(SIZE)
    assert made.saved_gflops() is None
    made.set_rate(0.5)
    with FlopCounterMode(display=False) as counter:
        fewer = made(IMAGES[:1]).context
    (saved,) = made.saved_gflops().tolist()
    # The matching of ToMe, and EViT's second look, are below some percent.
    assert (price - saved) * 1e9 == pytest.approx(counter.get_total_flops(), rel=0.03)
    assert saved > 0
    assert made.gflops(SIZE) == price  # what routes are priced at stays
    assert not torch.allclose(fewer, own[:1])
    made.set_rate(1.0)
    assert torch.equal(made(IMAGES).context, own)
    made.set_rate(0.5)
    made.train()
    made(IMAGES[:1])
    assert made.method.rate == 1.0  # training knows its own rate alone
    assert made.saved_gflops() is None


def test_rates_by_hand():
    """ToMe at 0.5 of 32 patches in 4 blocks: a further 4 in each; EViT keeps 0.8 * 0.5 each time."""
    tome = ToMe([3])
    tome.rate = 0.5
    assert tome.counts(4, NUM_PATCHES) == [7, 4, 4, 4]
    assert ToMe(20).counts(3, 32) == [16, 8, 4]  # never more than half
    evit, alike = EVit((1, 2), 0.8), EVit((1, 2), 0.4)
    evit.rate = 0.5
    assert evit.gflops(DIM, 4, 1, 32, 4.0) == alike.gflops(DIM, 4, 1, 32, 4.0)
    guided, alike = GuidedKeep(0.8), GuidedKeep(0.4)
    guided.rate = 0.5
    assert guided.gflops(DIM, 4, 1, 32, 4.0) == alike.gflops(DIM, 4, 1, 32, 4.0)


@torch.no_grad()
def test_halted_patches_are_saved_in_the_trace():
    made = with_method(AVit(gamma=2.0, beta=-0.5))
    with FlopCounterMode(display=False) as counter:
        made(IMAGES[:1])
    (saved,) = made.saved_gflops().tolist()
    assert saved > 0
    assert (made.gflops(SIZE) - saved) * 1e9 == pytest.approx(counter.get_total_flops(), rel=0.01)
    made = with_method(AVit(never=True))
    made(IMAGES)
    assert made.saved_gflops() is None


@pytest.mark.parametrize("method", [None, Dense(), AVit(), DynamicVit(DIM, (1,), keep=1)])
def test_methods_without_a_rate(method):
    made = with_method(method)
    made.set_rate(1.0)
    with pytest.raises(ValueError, match="expected a rate in") as error:
        made.set_rate(0.5)
    assert "\n" not in str(error.value)
    with pytest.raises(ValueError, match="got 0 of EVit"):
        with_method(EVit((1,))).set_rate(0.0)


def test_a_rate_that_costs_more_than_it_saves_is_not_tried():
    """Of 32 patches ToMe at 0.97 merges one: less than its matching costs, here made dear."""
    model = view_model(ToMe(0))
    method = model.cameras.encoder.method
    honest = type(method).gflops
    method.gflops = lambda *sizes: honest(method, *sizes) * (1.0 if method.rate in (1.0, 0.5) else 9.0)
    assert [one.view_rate for one in token_levels(model, BATCHES[:1])] == [1.0, 1.0, 1.0, 0.5]
    plain = adaptive_model()
    assert [one.view_rate for one in token_levels(plain, BATCHES[:1])] == [1.0] * 4
    assert views_of(plain) is None
    assert TokenLevel() == TokenLevel(-math.inf, 1.0)
