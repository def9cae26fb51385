"""How sure an exit may be trusted to be: calibration errors, temperatures, conformal quantiles."""

import math
from dataclasses import dataclass

from jaxtyping import Bool, Float, Int64
from torch import Tensor
from torch.nn import functional

from fusion.trunk.exits_peaks import NOTHING, Peaks


@dataclass(frozen=True)
class Reliability:
    """How far probabilities are from frequencies.

    Attributes:
        ece: expected calibration error, 15 bins of equal width.
        brier: mean squared error.
        nll: mean negative log likelihood, in nats.
        count: of probabilities.
    """

    ece: float
    brier: float
    nll: float
    count: int


def reliability(logits: Float[Tensor, "n"], correct: Bool[Tensor, "n"], num_bins: int = 15) -> Reliability:
    """Of the probabilities of boxes. Do it per exit, and once more for what really left (gated): leaving selects."""
    prob, hit = logits.double().sigmoid(), correct.double()
    bins = (prob * num_bins).long().clamp(max=num_bins - 1)
    zeros = prob.new_zeros(num_bins)
    gaps = zeros.index_add(0, bins, prob) - zeros.index_add(0, bins, hit)
    count = max(len(prob), 1)
    return Reliability(
        ece=float(gaps.abs().sum() / count),
        brier=float((prob - hit).square().sum() / count),
        nll=float(functional.binary_cross_entropy_with_logits(logits.double(), hit, reduction="sum") / count),
        count=len(prob),
    )


def labelled_logits(peaks: Peaks, truth: Int64[Tensor, "r k"]) -> tuple[Float[Tensor, "n"], Bool[Tensor, "n"]]:
    """Logit of every peak and whether it found a box; ``truth`` comes from ``match_to_boxes``."""
    logits = peaks.logits.gather(-1, peaks.label[..., None])[..., 0]
    return logits[peaks.is_peak], (truth != NOTHING)[peaks.is_peak]


def fit_temperature(logits: Float[Tensor, "n"], correct: Bool[Tensor, "n"]) -> float:
    """The temperature of least negative log likelihood, in [0.05, 20] (Guo et al., ICML 2017).

    The likelihood is convex in 1 / T, so bisection on its slope finds it. Of peaks found at temperature 1.

    Raises:
        ValueError: peaks that are all right or all wrong: no temperature is best.
    """
    if not bool(correct.any()) or bool(correct.all()):
        raise ValueError(
            f"expected right and wrong peaks to fit a temperature, got {int(correct.sum())} of {len(correct)} right; "
            "use more validation data"
        )
    logits, hit = logits.double(), correct.double()
    low, high = 1 / 20.0, 1 / 0.05
    for _ in range(60):
        middle = (low + high) / 2
        slope = float((logits * ((logits * middle).sigmoid() - hit)).sum())
        low, high = (middle, high) if slope < 0 else (low, middle)
    return 2 / (low + high)


def conformal_quantile(peaks: Peaks, truth: Int64[Tensor, "r k"], miscoverage: float) -> float:
    """qhat: at least 1 - miscoverage of exchangeable peaks have their true hypothesis among those of >= 1 - qhat.

    The ceil((n + 1)(1 - miscoverage))-th smallest of 1 - p(true); 1 (every hypothesis) where n is too small for that.
    """
    if not 0 < miscoverage < 1:
        raise ValueError(f"expected a miscoverage in (0, 1), got {miscoverage}")
    right = peaks.hypotheses.gather(-1, truth.clamp_min(0)[..., None])[..., 0]
    misfits = (1 - right)[truth >= 0].sort().values
    rank = math.ceil((len(misfits) + 1) * (1 - miscoverage))
    return 1.0 if rank > len(misfits) else float(misfits[rank - 1])
