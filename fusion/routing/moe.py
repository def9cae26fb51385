"""A sparse mixture of experts over rows (samples, views, tokens): each row runs its k best experts and no others."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor, nn

from fusion.routing.costs import linear_gflops


@dataclass(frozen=True, eq=False)
class Assignment:
    """Which rows go to which experts.

    Attributes:
        probs: softmax of the (noisy) logits.
        logits: without noise.
        experts: the k chosen ones of every row, best first.
        kept: False where an expert was full; such a row passes by it.
        weights: of the chosen experts' outputs: their probabilities, 0 where not kept.
    """

    probs: Float[Tensor, "n e"]
    logits: Float[Tensor, "n e"]
    experts: Int64[Tensor, "n k"]
    kept: Bool[Tensor, "n k"]
    weights: Float[Tensor, "n k"]


class TopKMixture(nn.Module):
    """y = x + sum over the k best experts of G_e(x) f_e(x) (Shazeer et al., ICLR 2017; Riquelme et al., NeurIPS 2021).

    Each expert runs once, on the rows that are its own. Noise of deviation 1/E on the logits in training alone. Dropped
    rows pass through the residual. Gates in float32.

    Args:
        experts: modules from (rows, channels) to (rows, channels).
        channels: of a row.
        top_k: experts per row.
        capacity_factor: room of each expert, as a multiple of an equal share, ceil(k N factor / E); None: no limit.
            First come, first served, best choices of all rows before second choices.
        balance_rate: of the selection bias that evens out the load without a loss (Wang et al., 2024): raised for
            experts below the mean load and lowered above it. The bias selects, and has no part in the weights. 0: none.
            Between *sensors* an even load is the wrong aim; use a budget there.
    """

    def __init__(
        self,
        experts: Sequence[nn.Module],
        channels: int,
        top_k: int = 1,
        capacity_factor: float | None = None,
        balance_rate: float = 0.0,
    ):
        super().__init__()
        if not 1 <= top_k <= len(experts):
            raise ValueError(f"expected top_k between 1 and the {len(experts)} experts, got {top_k}")
        self.experts = nn.ModuleList(experts)
        self.top_k, self.capacity_factor, self.balance_rate = top_k, capacity_factor, balance_rate
        self.gate = nn.Linear(channels, len(experts), bias=False)
        self.register_buffer("bias", torch.zeros(len(experts)))

    def forward(
        self, rows: Float[Tensor, "n c"], generator: torch.Generator | None = None
    ) -> tuple[Float[Tensor, "n c"], Assignment]:
        """The mixed rows, and who went where (for the losses and the trace).

        Args:
            generator: of the noise in training; None for none.
        """
        assignment = self.assign(rows, generator if self.training else None)
        output = rows
        for number, expert in enumerate(self.experts):
            row, place = torch.nonzero((assignment.experts == number) & assignment.kept, as_tuple=True)
            if len(row):
                mixed = expert(rows[row]) * assignment.weights[row, place, None].to(rows.dtype)
                output = output.index_add(0, row, mixed)
        if self.training and self.balance_rate:
            self._rebalance(assignment)
        return output, assignment

    def assign(self, rows: Float[Tensor, "n c"], generator: torch.Generator | None = None) -> Assignment:
        """Choices and weights, without running an expert."""
        with torch.autocast(rows.device.type, enabled=False):
            logits = self.gate(rows.float())
            num_experts = logits.shape[1]
            noisy = logits
            if generator is not None:
                noisy = logits + torch.randn(logits.shape, generator=generator).to(logits) / num_experts
            probs = noisy.softmax(dim=-1)
            # Probabilities plus bias: the bias is on their scale, whatever that of the logits.
            experts = (probs + self.bias).topk(self.top_k, dim=-1).indices
            kept = self._within_capacity(experts, num_experts)
            weights = probs.gather(-1, experts) * kept
        return Assignment(probs, logits, experts, kept, weights)

    def capacity(self, num_rows: int) -> int:
        """Rows that one expert takes."""
        if self.capacity_factor is None:
            return num_rows * self.top_k
        return ceil(self.top_k * num_rows * self.capacity_factor / len(self.experts))

    def _within_capacity(self, experts: Int64[Tensor, "n k"], num_experts: int) -> Bool[Tensor, "n k"]:
        in_order = nn.functional.one_hot(experts.T.reshape(-1), num_experts)  # all first choices, then all second
        place = (in_order.cumsum(dim=0) * in_order).sum(dim=-1)
        return (place <= self.capacity(len(experts))).view(self.top_k, -1).T

    @torch.no_grad()
    def _rebalance(self, assignment: Assignment) -> None:
        load = torch.bincount(assignment.experts.reshape(-1), minlength=len(self.experts)).float()
        self.bias += self.balance_rate * torch.sign(load.mean() - load)

    def gate_gflops(self) -> float:
        """Of one row."""
        return linear_gflops(self.gate.in_features, self.gate.out_features)


def importance_loss(assignment: Assignment) -> Float[Tensor, ""]:
    """Squared coefficient of variation of the experts' summed probabilities (Shazeer et al., equation 7)."""
    return _squared_variation(assignment.probs.sum(dim=0))


def load_loss(assignment: Assignment) -> Float[Tensor, ""]:
    """Squared coefficient of variation of the smooth load (Shazeer et al., appendix A; Riquelme et al., appendix A).

    P(expert is among the top k if its own noise were drawn anew), noise of deviation 1/E: normal probability that its
    logit exceeds the k-th best of the others.
    """
    logits, num_experts = assignment.logits, assignment.logits.shape[1]
    top_k = assignment.experts.shape[1]
    if top_k == num_experts:
        return logits.sum() * 0.0
    best = logits.topk(top_k + 1, dim=-1).values
    is_in = logits >= best[:, top_k - 1 : top_k]
    threshold = torch.where(is_in, best[:, top_k : top_k + 1], best[:, top_k - 1 : top_k])
    probability = torch.special.ndtr((logits - threshold.detach()) * num_experts)
    return _squared_variation(probability.mean(dim=0))


def switch_loss(assignment: Assignment) -> Float[Tensor, ""]:
    """E * sum_e f_e P_e: share of first choices times mean probability; 1 when even (Fedus et al., JMLR 2022, eq.
    4).
    """
    num_experts = assignment.probs.shape[1]
    share = nn.functional.one_hot(assignment.experts[:, 0], num_experts).float().mean(dim=0)
    return num_experts * (share * assignment.probs.mean(dim=0)).sum()


def router_z_loss(assignment: Assignment) -> Float[Tensor, ""]:
    """Mean squared log-sum-exp of the logits: keeps them small (Zoph et al., 2022, equation 5)."""
    return assignment.logits.logsumexp(dim=-1).square().mean()


def _squared_variation(values: Float[Tensor, "e"]) -> Float[Tensor, ""]:
    return values.var(unbiased=False) / values.mean().square().clamp_min(1e-12)
