import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from fusion.routing.budget import RouteTable, budget_loss
from fusion.routing.plan import FULL, LITE, SKIP
from fusion.routing.router import Router
from sensors.rig import LIDAR_UNIT, NUM_CAMERAS, UNITS
from tests.fusion.routing_toys import toy_glance, toy_prices
from tests.fusion.small_model import small_model

TABLE = RouteTable(toy_prices())


@pytest.fixture
def router() -> Router:
    torch.manual_seed(0)
    return Router()


def test_an_untrained_router_is_open(router):
    plan = router.eval()(toy_glance(8), TABLE)
    assert (plan.choice == FULL).all()
    assert (1 - plan.probs[..., SKIP]).mean().item() == pytest.approx(0.85, abs=0.03)
    router.train()
    drawn = [router(toy_glance(8), TABLE).choice for _ in range(20)]
    assert (torch.cat(drawn) != SKIP).float().mean().item() == pytest.approx(0.85, abs=0.05)


def test_an_untrained_router_saves_by_lite_branches_first(router):
    """All lite and the rest off costs (2 + 6 / 4 + 1 + 0.1) / 12.5 = 0.368: no need to skip anything above it."""
    for budget in (0.37, 0.6, 0.9):
        assert (router.eval()(toy_glance(2), TABLE, budget).choice != SKIP).all()
    assert (router(toy_glance(2), TABLE, 0.25).choice == SKIP).any()


@pytest.mark.parametrize("training", [True, False])
def test_absent_units_and_missing_branches_are_never_chosen(router, training):
    available = torch.rand(16, len(UNITS), generator=torch.Generator().manual_seed(5)) < 0.5
    table = RouteTable(toy_prices(lite_lidar=False))
    router.bias.data[:] = torch.tensor([-30.0, 60.0, 30.0])
    plan = router.train(training)(toy_glance(16, available=available), table)
    assert (plan.choice[~available] == SKIP).all()
    assert (plan.choice[available] != SKIP).all()
    assert (plan.choice[:, LIDAR_UNIT] != LITE).all()
    assert (plan.probs[..., LITE][:, LIDAR_UNIT] == 0).all()
    torch.testing.assert_close(plan.probs.sum(-1), torch.ones(16, len(UNITS)))
    assert (plan.probs[~available][:, SKIP] == 1).all()
    assert torch.isfinite(plan.log_prob).all()


def test_evaluation_is_deterministic_and_training_follows_its_key(router):
    glance = toy_glance(16)
    router.eval()
    assert torch.equal(router(glance, TABLE, 0.6).choice, router(glance, TABLE, 0.6).choice)
    router.train()

    def draw(*key: int) -> torch.Tensor:
        router.set_noise_key(*key)
        return torch.stack([router(glance, TABLE).choice for _ in range(2)])

    first = draw(7, 100, 0)
    assert torch.equal(first, draw(7, 100, 0))
    assert not torch.equal(first[0], first[1])
    for other in [(8, 100, 0), (7, 101, 0), (7, 100, 1)]:
        assert not torch.equal(first, draw(*other))


def test_a_given_generator_decides_the_noise(router):
    glance = toy_glance(16)
    choices = [router(glance, TABLE, 1.0, torch.Generator().manual_seed(4)).choice for _ in range(2)]
    assert torch.equal(*choices)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("budget", [TABLE.min_budget, 0.3, 0.55, 0.9, 1.0])
def test_every_sample_keeps_to_its_budget(router, training, budget):
    plan = router.train(training)(toy_glance(16), TABLE, budget)
    assert (TABLE.prices.cost_of(plan.choice) <= budget + 2e-6).all()
    assert (plan.choice != SKIP).any(dim=1).all()


def test_the_floor_is_kept(router):
    table = RouteTable(toy_prices(), floor=("CAM_FRONT",))
    router.bias.data[:] = torch.tensor([30.0, 0.0, 0.0])
    plan = router.eval()(toy_glance(4), table, table.min_budget)
    assert (plan.choice[:, 0] == LITE).all()
    assert (plan.choice[:, 1:] == SKIP).all()


def test_a_sample_is_routed_alike_alone_and_in_company(router):
    glance = toy_glance(6, seed=9)
    router.eval().score.weight.data.normal_(generator=torch.Generator().manual_seed(1))
    budget = torch.linspace(0.2, 1, 6)
    together = router(glance, TABLE, budget)
    for row in range(6):
        one = type(glance)(*(getattr(glance, name)[row : row + 1] for name in glance.__dataclass_fields__))
        alone = router(one, TABLE, budget[row : row + 1])
        assert torch.equal(alone.choice[0], together.choice[row])
        torch.testing.assert_close(alone.probs[0], together.probs[row])


def test_the_glance_and_the_budget_matter(router):
    router.score.weight.data.normal_(generator=torch.Generator().manual_seed(1))
    router.eval()
    glance = toy_glance(2)
    dark = type(glance)(**{**glance.__dict__, "thumbnails": glance.thumbnails * 0})
    plan = router(glance, TABLE)
    assert not torch.allclose(plan.probs[:, :NUM_CAMERAS], router(dark, TABLE).probs[:, :NUM_CAMERAS])
    assert not torch.allclose(plan.probs, router(glance, TABLE, 0.5).probs)


def test_log_prob_by_hand(router):
    plan = router(toy_glance(3), TABLE)
    chosen = plan.probs.gather(-1, plan.choice[..., None])[..., 0]
    torch.testing.assert_close(plan.log_prob, chosen.log().sum(-1))


def test_gates_and_budget_loss_reach_the_router(router):
    plan = router(toy_glance(3), TABLE, 0.5)
    (plan.weight.sum() + budget_loss(plan)).backward()
    for name, parameter in router.named_parameters():
        assert parameter.grad is not None, name
        assert torch.isfinite(parameter.grad).all(), name
    assert router.bias.grad.abs().sum() > 0


def test_the_budget_loss_closes_units(router):
    glance = toy_glance(8)
    optimizer = torch.optim.Adam(router.parameters(), lr=0.05)
    for _ in range(60):
        optimizer.zero_grad()
        budget_loss(router(glance, TABLE, 0.4)).backward()
        optimizer.step()
    assert router(glance, TABLE, 0.4).expected_cost.mean().item() < 0.45


def test_mixed_precision_leaves_the_router_in_float32(router):
    with torch.autocast("cpu", dtype=torch.bfloat16):
        plan = router.eval()(toy_glance(2), TABLE)
    assert plan.probs.dtype == torch.float32
    torch.testing.assert_close(plan.probs, router(toy_glance(2), TABLE).probs, atol=0, rtol=0)


def test_nothing_present_is_finite(router):
    glance = toy_glance(2, available=torch.zeros(2, len(UNITS), dtype=torch.bool))
    zeros = {name: torch.zeros_like(value) for name, value in glance.__dict__.items()}
    plan = router(type(glance)(**zeros), TABLE)
    assert (plan.choice == SKIP).all()
    assert torch.isfinite(plan.probs).all()
    assert plan.log_prob.tolist() == [0, 0]


def test_gflops_equal_the_counter(router):
    with FlopCounterMode(display=False) as counter:
        router.eval()(toy_glance(1), TABLE)
    assert router.gflops() + TABLE.gflops == pytest.approx(counter.get_total_flops() / 1e9, rel=1e-6)


def test_a_router_that_starts_from_prices_finds_routes_of_equal_cost_equally_good():
    model = small_model()
    table = torch.log_softmax(model.router.bias, dim=-1)
    worth = (table - table[:, :1]).double()
    routes, prices = model.routes.routes(), model.routes.prices
    total = worth.gather(1, routes.T).sum(dim=0)
    spent = prices.cost_of(routes) - prices.always_share
    torch.testing.assert_close(total / total.max(), spent / spent.max(), rtol=1e-5, atol=1e-6)
    assert 0.75 < (1 - table.exp()[:, SKIP]).mean() < 0.9
