"""A router taught by the losses of many routes of every sample, the detector standing still.

A training step compares two routes of a few samples. Here the encoders run once per sample and some fifty routes are
replayed from them (``fusion.efficiency.replay``); on the table of losses the router is fitted in seconds, by the
expectation of the loss under its own choice among the routes that a budget allows.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, fields

import torch
from jaxtyping import Bool, Float, Float64, Int64
from torch import Tensor, nn

from datamodules.batch import Batch
from fusion.draws import keyed_generator
from fusion.efficiency.budget_routes import candidate_routes
from fusion.efficiency.budget_run import route_losses
from fusion.efficiency.replay import EncodedSample, at_rest
from fusion.heads.targets import center_targets
from fusion.model import FusionModel
from fusion.routing.plan import SKIP
from fusion.routing.router import Glance, glance_of
from fusion.routing.supervision import expected_route_loss


@dataclass(frozen=True, eq=False)
class RouteLosses:
    """Measured routes of N samples.

    Attributes:
        glance: what the router sees of each.
        choice: R routes of each sample, absent units skipped.
        counts: which of them count: not empty, and not the same as an earlier one of the sample.
        losses: detection loss summed over the sample's boxes, divided by the mean number of boxes of all samples.
        cost: price of each route as a share of the full cost, as the cap takes it.
        scenes: of each sample.
        num_static: the first of the R are the same for all samples, the others were drawn for each.
    """

    glance: Glance
    choice: Int64[Tensor, "n r u"]
    counts: Bool[Tensor, "n r"]
    losses: Float64[Tensor, "n r"]
    cost: Float64[Tensor, "n r"]
    scenes: tuple[str, ...]
    num_static: int

    def __len__(self) -> int:
        return len(self.scenes)

    def select(self, rows: Int64[Tensor, "m"]) -> "RouteLosses":
        """Some of the samples."""
        glance = Glance(**{name: value[rows] for name, value in vars(self.glance).items()})
        parts = (getattr(self, name)[rows] for name in ("choice", "counts", "losses", "cost"))
        return RouteLosses(glance, *parts, tuple(self.scenes[row] for row in rows.tolist()), self.num_static)

    def fits(self, budget: Float[Tensor, "n"]) -> Bool[Tensor, "n r"]:
        """Routes that count and are within each sample's budget."""
        return self.counts & (self.cost <= budget[:, None] + 1e-6)


@dataclass(frozen=True)
class RouterFit:
    """How a router is fitted: AdamW under one cycle of the learning rate.

    Attributes:
        batch_size: samples per step, drawn with replacement, each with a budget of its own.
        entropy: reward of an undecided router, against holding on to the first good route.
    """

    steps: int = 1500
    batch_size: int = 64
    learning_rate: float = 3e-3
    weight_decay: float = 0.05
    entropy: float = 0.01
    seed: int = 0

    def __post_init__(self):
        if self.steps < 1 or self.batch_size < 1 or self.learning_rate <= 0 or self.entropy < 0:
            raise ValueError(
                "expected steps and batch_size of at least 1, learning_rate above 0 and entropy of at least 0, got "
                f"{self.steps}, {self.batch_size}, {self.learning_rate:g} and {self.entropy:g}"
            )


@torch.no_grad()
def measure_route_losses(
    model: FusionModel,
    batches: Iterable[Batch],
    num_random: int = 8,
    seed: int = 0,
    device: torch.device | str = "cpu",
    progress: Callable[[int], None] | None = None,
) -> RouteLosses:
    """Losses of the static candidates and of some random routes of every sample; exits and tokens at rest.

    Args:
        batches: of one sample each, with labels.
        num_random: drawn within budgets drawn uniformly, so that single views are seen to come and go.
        progress: told how many samples are done.

    Raises:
        ValueError: no samples, no labels, or a model whose routes cannot be replayed.
    """
    glances, choices, counts, losses, num_boxes, scenes = [], [], [], [], [], []
    candidates = candidate_routes(model.routes)
    with at_rest(model.to(device).eval()):
        for number, batch in enumerate(batches):
            batch = batch.to(device)
            if batch.boxes is None:
                raise ValueError("expected labels to teach a router by, got a split without any; choose another")
            available = model.available(batch)
            generator = keyed_generator("router-fit", seed, number)
            least = model.min_budget
            budget = least + (1 - least) * torch.rand(num_random, generator=generator, dtype=torch.float64)
            drawn = model.routes.random(available.cpu().expand(num_random, -1), budget, generator)
            choice = torch.where(available.cpu(), torch.cat([candidates, drawn]), SKIP)
            different, which = torch.unique(choice, dim=0, return_inverse=True)
            targets = center_targets(batch.boxes, 1, model.head.grid)
            found = route_losses(EncodedSample.of(model, batch).run(different).head, targets)
            glances.append(glance_of(batch, available))
            choices.append(choice)
            counts.append(_firsts(which) & (choice != SKIP).any(dim=1))
            losses.append(found[which])
            num_boxes.append(len(targets.sample))
            scenes += batch.scenes
            if progress is not None:
                progress(number + 1)
    if not scenes:
        raise ValueError("expected samples to teach a router by, got an empty split; choose another")
    glance = Glance(**{f.name: torch.cat([getattr(one, f.name) for one in glances]).cpu() for f in fields(Glance)})
    choice = torch.stack(choices)
    cost = model.prices().cost_of(choice.flatten(0, 1)).view(choice.shape[:2])
    mean_boxes = max(sum(num_boxes) / len(num_boxes), 1.0)
    return RouteLosses(
        glance,
        choice,
        torch.stack(counts),
        torch.stack(losses) / mean_boxes,
        cost,
        tuple(scenes),
        num_static=len(candidates),
    )


def fit_router(model: FusionModel, table: RouteLosses, settings: RouterFit) -> None:
    """Teach the model's router in place; nothing else of the model moves.

    Each step minimises the mean over samples of sum_r p(r) L(r), p the softmax of the routes' total scores over the
    measured routes within the sample's budget: what the router would lose if it drew among them.
    """
    router, generator = model.router.cpu(), torch.Generator().manual_seed(settings.seed)
    optimizer = torch.optim.AdamW(router.parameters(), settings.learning_rate, weight_decay=settings.weight_decay)
    rate = torch.optim.lr_scheduler.OneCycleLR(optimizer, settings.learning_rate, total_steps=settings.steps + 1)
    least = model.min_budget
    with torch.random.fork_rng(devices=[]), torch.enable_grad():
        for _ in range(settings.steps):
            rows = torch.randint(len(table), (settings.batch_size,), generator=generator)
            budget = least + (1 - least) * torch.rand(settings.batch_size, generator=generator, dtype=torch.float64)
            some = table.select(rows)
            totals, fits = route_totals(model, some, budget), some.fits(budget)
            loss = expected_route_loss(totals, some.losses, fits) - settings.entropy * _entropy(totals, fits)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            rate.step()


def route_totals(model: nn.Module, table: RouteLosses, budget: Float64[Tensor, "n"]) -> Float[Tensor, "n r"]:
    """The router's total score of every measured route, told each sample's budget."""
    scores = model.router.logits(table.glance, model.routes, budget.float())
    return scores[:, None].expand(-1, table.choice.shape[1], -1, -1).gather(-1, table.choice[..., None]).sum(dim=(2, 3))


@dataclass(frozen=True)
class FitCheck:
    """Mean losses of measured routes at one budget, on samples that the router was not fitted to.

    Attributes:
        before, after: of the router's best measured route within the budget.
        static: of the route that was best on the samples it was fitted to, the next best where it cannot run.
        least: of each sample's best route; it looks at the labels.
        num_routes: different routes taken by the fitted router.
    """

    budget: float
    before: float
    after: float
    static: float
    least: float
    num_routes: int


@torch.no_grad()
def check_fit(
    before: FusionModel, after: FusionModel, fitted: RouteLosses, others: RouteLosses, budgets: Sequence[float]
) -> list[FitCheck]:
    """The fitted router on samples it has not seen.

    Args:
        before, after: the model with its former and with its fitted router.
        fitted: samples that the router was fitted to, from which the static order of routes is taken.
        others: samples to look at.
    """
    found, rows = [], torch.arange(len(others))
    better = _static_order(fitted)
    for budget in budgets:
        told = torch.full((len(others),), float(budget), dtype=torch.float64)
        fits = others.fits(told)
        fits |= ~fits.any(dim=1, keepdim=True) & others.counts  # nothing cheap enough is there: whatever is

        def loss_of(scores: Tensor, fits=fits) -> tuple[float, Tensor]:
            best = scores.double().masked_fill(~fits, -torch.inf).argmax(dim=1)
            return float(others.losses[rows, best].mean()), others.choice[rows, best]

        taken = [loss_of(route_totals(model, others, told)) for model in (before, after)]
        static = loss_of(better.expand(len(others), -1))[0]
        least = loss_of(-others.losses)[0]
        different = len(torch.unique(taken[1][1], dim=0))
        found.append(FitCheck(float(budget), taken[0][0], taken[1][0], static, least, different))
    return found


def _static_order(table: RouteLosses) -> Float64[Tensor, "r"]:
    """Minus the mean loss of each static route against its sample's mean, over samples in which it counts."""
    mean = (table.losses * table.counts).sum(dim=1, keepdim=True) / table.counts.sum(dim=1, keepdim=True).clamp_min(1)
    over = ((table.losses - mean) * table.counts).sum(dim=0) / table.counts.sum(dim=0).clamp_min(1)
    never = ~table.counts.any(dim=0) | (torch.arange(len(over)) >= table.num_static)
    return -over.masked_fill(never, 1e9)


def _entropy(totals: Float[Tensor, "n r"], fits: Bool[Tensor, "n r"]) -> Float[Tensor, ""]:
    """Mean entropy of the choice among the routes that fit, over samples that have any."""
    log_probs = torch.log_softmax(totals.masked_fill(~fits, -1e9), dim=1)
    some = fits.any(dim=1)
    return -((log_probs.exp() * log_probs * fits).sum(dim=1) * some).sum() / some.sum().clamp_min(1)


def _firsts(which: Int64[Tensor, "r"]) -> Bool[Tensor, "r"]:
    """True where a number is met for the first time."""
    place = torch.arange(len(which))
    first = torch.full((int(which.max()) + 1,), len(which)).scatter_reduce(0, which, place, "amin")
    return first[which] == place
