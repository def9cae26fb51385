"""Weights of samples at early exits by meta-learning: a bilevel method as the step of a custom stage."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.func import functional_call

from datamodules.batch import Batch
from fusion.heads.center import HeadOutput
from fusion.heads.losses import LOSS_WEIGHTS
from fusion.heads.targets import center_targets
from fusion.model import FusionOutput
from fusion.routing.objectives import mean_over_process_group
from fusion.routing.plan import SKIP
from fusion.stages import Stage, is_below
from fusion.trunk.exits import EarlyExits
from fusion.trunk.exits_calibration import geometric_shares
from fusion.trunk.exits_losses import SampleWeights, exit_losses, owned_loss, owners, virtual_step
from fusion.trunk.exits_peaks import find_peaks

if TYPE_CHECKING:
    from fusion.task import FusionTask


LEAST_SAMPLES = 3
"""Of a batch, for the weight network to learn from it."""


class SampleWeighting(nn.Module):
    """A weight for each sample at each exit, learnt from what it does for other samples (after L2W-DEN, Han et al.,
    Learning to Weight Samples for Dynamic Early-exiting Networks, ECCV 2022).

    A sample that leaves early need not be answered well by late exits, nor a hard one by early exits. One step:

    1. The batch runs along random routes (``keep`` and ``lite_share`` of the stage): losses l of every sample at every
       exit, the model's own head last.
    2. A random half of the samples teaches: one virtual step of gradient descent, on the mean of w * l, of the
       parameters below ``virtual``.
    3. The other half judges: it runs at the stepped parameters, and each sample counts at the exit that it would leave
       at alone. The gradient of that in the weight network moves it, by an Adam of its own.
    4. All samples are weighted anew: the term ``sample_weights``, the sum of (w - 1) * l, joins the task's own losses,
       so that the detection losses count with their weights. The weights at an exit have the mean 1.

    The weight network and the state of its optimiser are in the checkpoint. It learns from batches of three samples and
    more: one that teaches alone has the weight 1, whatever the network says.

    Args:
        num_exits: the last one included.
        virtual: prefixes of the parameters that the virtual step moves; few are cheap.
        virtual_learning_rate: of the virtual step.
        learning_rate: of the weight network.
        ratio: shares of the judges that leave at exit k are proportional to ratio ** k, the surest first; below 1 most
            leave early.
        reach: of the weights around 1.
        hidden: width of the weight network.

    Attributes:
        judged: loss of the judges in the last step; NaN before the first.
    """

    terms = ("sample_weights",)

    def __init__(
        self,
        num_exits: int,
        virtual: Sequence[str] = ("exits", "head"),
        virtual_learning_rate: float = 0.01,
        learning_rate: float = 1e-3,
        ratio: float | int = 1.0,
        reach: float = 0.8,
        hidden: int = 16,
    ):
        super().__init__()
        if num_exits < 2 or not (virtual_learning_rate > 0 and learning_rate > 0 and ratio > 0 and 0 < reach <= 1):
            raise ValueError(
                "expected at least two exits, learning rates and ratio above 0 and reach in (0, 1] for sample weights, "
                f"got {num_exits}, {virtual_learning_rate}, {learning_rate}, {ratio} and {reach}"
            )
        self.virtual, self.virtual_learning_rate = tuple(virtual), virtual_learning_rate
        self.shares = geometric_shares(ratio, num_exits)
        self.weigher = SampleWeights(num_exits, reach, hidden)
        # Not the task's: they have no part in its loss, and under DDP nobody waits for their gradients.
        self.weigher.requires_grad_(False)
        self.optimizer = torch.optim.Adam(self.weigher.parameters(), lr=learning_rate)
        self._loaded: dict | None = None
        self.judged = torch.tensor(math.nan)

    def check(self, stage: Stage, model: nn.Module) -> None:
        """That model and stage have what it needs.

        Raises:
            ValueError: no exits or another number of them, or no virtual parameters that train.
        """
        exits = getattr(model, "exits", None)
        found = 0 if exits is None else len(exits.heads) + 1
        if found != len(self.shares):
            raise ValueError(
                f"stage '{stage.name}': expected a model with {len(self.shares)} exits, its own head included, for "
                f"sample weights, got {found}; set num_exits or choose a model with exits"
            )
        names = [name for name, _ in model.named_parameters() if any(is_below(name, one) for one in self.virtual)]
        if not any(stage.trains(name) for name in names):
            raise ValueError(
                f"stage '{stage.name}': expected virtual parameters among those that the stage trains, got "
                f"{list(self.virtual)}; change virtual or trainable"
            )

    def check_data(self, stage: Stage, data: object) -> None:
        """That batches are large enough to learn from.

        Raises:
            ValueError: they are not.
        """
        size = getattr(data, "batch_size", LEAST_SAMPLES)
        if size < LEAST_SAMPLES:
            raise ValueError(
                f"stage '{stage.name}': expected batches of at least {LEAST_SAMPLES} samples, two to teach and one "
                f"to judge, got data.batch_size={size}; raise it"
            )

    def forward(
        self, task: "FusionTask", batch: Batch, generator: torch.Generator
    ) -> tuple[FusionOutput, dict[str, Tensor]]:
        """See ``fusion.custom_step.CustomStep``."""
        model = task.model
        plan = task.plan_of(replace(task.stage, route="random"), batch, generator)
        output = model(batch, plan=plan, execution=task.stage.execution)
        losses = losses_at_exits(task, output, batch)
        teaches = torch.zeros(len(batch), dtype=torch.bool)
        teaches[torch.randperm(len(batch), generator=generator)[: math.ceil(len(batch) / 2)]] = True
        teaches = teaches.to(losses.device)
        if len(batch) >= LEAST_SAMPLES:
            self._learn(task, (batch, output, losses), teaches, float(torch.rand((), generator=generator)))
        weights = self.weigher(losses)
        return output, {"sample_weights": ((weights - 1) * losses).mean(dim=0).sum()}

    def _learn(
        self,
        task: "FusionTask",
        seen: tuple[Batch, FusionOutput, Float[Tensor, "b k"]],
        teaches: Bool[Tensor, "b"],
        rounding: float,
    ) -> None:
        """One step of the weight network."""
        (batch, output, losses), model = seen, task.model
        choice = torch.where(teaches[:, None], SKIP, output.plan.choice)  # encoders run for the judges alone
        plan = model.plan_of(choice, model.available(batch))

        def judge(stepped: Mapping[str, Tensor]) -> Float[Tensor, ""]:
            answer = functional_call(model, dict(stepped), (batch,), {"plan": plan, "execution": task.stage.execution})
            scores = exit_scores(model.exits, answer.exits.outputs[:-1])[~teaches]
            leaving = owners(scores, whole_shares(self.shares, len(scores), rounding))
            return owned_loss(losses_at_exits(task, answer, batch)[~teaches], leaving)

        trained = [(name, value) for name, value in model.named_parameters() if value.requires_grad]
        parameters = {name: value for name, value in trained if any(is_below(name, one) for one in self.virtual)}
        self.judged, gradients = meta_gradient(
            self.weigher, losses[teaches], parameters, self.virtual_learning_rate, judge
        )
        if self._loaded is not None:  # by now the parameters are on their device
            self.optimizer.load_state_dict(self._loaded)
            self._loaded = None
        for parameter, gradient in zip(self.weigher.parameters(), gradients, strict=True):
            parameter.grad = mean_over_process_group(gradient)
        self.optimizer.step()
        self.optimizer.zero_grad()

    def get_extra_state(self) -> dict:
        """The optimiser's, for the checkpoint."""
        return {"optimizer": self.optimizer.state_dict() if self._loaded is None else self._loaded}

    def set_extra_state(self, state: dict) -> None:
        self._loaded = state["optimizer"]


def meta_gradient(
    weigher: nn.Module,
    losses: Float[Tensor, "a k"],
    parameters: Mapping[str, Tensor],
    learning_rate: float,
    judge: Callable[[Mapping[str, Tensor]], Float[Tensor, ""]],
) -> tuple[Float[Tensor, ""], list[Tensor]]:
    """What the judge says after a virtual step on weighted losses, and its gradient in the weigher's parameters.

    Nothing else gets a gradient, and nothing is changed.

    Args:
        losses: of the samples that teach at each exit, with their graph, which stays.
        parameters: that step, by name.
        judge: loss of other samples at the stepped parameters.
    """
    own = {name: value.detach().clone().requires_grad_() for name, value in weigher.named_parameters()}
    weighted = (functional_call(weigher, own, (losses,)) * losses).mean(dim=0).sum()
    judged = judge(virtual_step(parameters, weighted, learning_rate))
    return judged.detach(), list(torch.autograd.grad(judged, list(own.values())))


def losses_at_exits(task: "FusionTask", output: FusionOutput, batch: Batch) -> Float[Tensor, "b k"]:
    """Detection loss of every sample at every exit as the task weighs it in this stage; columns have the mean of the
    batch's loss.

    Raises:
        ValueError: the early exits did not run, or their loss does not count.
    """
    weight = task.weight_of("exits")
    if output.exits is None or output.exits.outputs is None or weight == 0:
        raise ValueError(
            f"stage '{task.stage.name}': expected early exits that learn beside their sample weights, got exits at "
            "rest; give losses.exits a factor above 0"
        )
    targets = center_targets(batch.boxes, len(batch), task.model.head.grid)
    *early, last = output.exits.outputs
    own = exit_losses([last], targets, {name: task.weight_of(name) for name in LOSS_WEIGHTS})
    return len(batch) * torch.cat([weight * exit_losses(early, targets), own], dim=1)


def exit_scores(exits: EarlyExits, answers: Sequence[HeadOutput]) -> Float[Tensor, "b e"]:
    """How sure the policy is of each early exit's answers; what it cannot tell is least sure."""
    grid = exits.heads[0].head.grid
    pairs = zip(answers, exits.temperatures, strict=True)
    peaks = [find_peaks(answer, grid, exits.num_peaks, temperature) for answer, temperature in pairs]
    with torch.no_grad():
        scores = [exits.policy(peaks[: number + 1]).float() for number in range(len(peaks))]
    return torch.stack(scores, dim=1).nan_to_num(nan=-torch.inf)


def whole_shares(shares: Sequence[float], count: int, rounding: float) -> list[float]:
    """Shares of whole samples whose mean over a uniform ``rounding`` in [0, 1) is ``shares`` (systematic sampling).

    Rounding to the nearest would let nobody leave early in a batch of few.
    """
    filled = [0, *(math.floor(sum(shares[: k + 1]) * count + rounding) for k in range(len(shares) - 1)), count]
    return [(high - low) / count for low, high in zip(filled, filled[1:], strict=False)]
