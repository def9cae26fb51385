"""Has a router collapsed? How many routes it takes, how evenly, and whether they have to do with the scene.

All in nats. A router whose routes have no information about conditions decides nothing, however many routes it has.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from fusion.routing.plan import SKIP
from sensors.rig import UNITS


@dataclass(frozen=True)
class RouteDiversity:
    """Of N routed samples.

    Attributes:
        num_samples: N.
        num_routes: distinct routes.
        entropy: of the distribution of routes.
        condition_information: mutual information of route and condition, less the bias that N samples bring by chance
            (Miller and Madow's correction; never below 0). None where all samples have the same condition.
        gate_information: I(route; input) of the gates themselves, H(mean probs) - mean H(probs), summed over units. 0
            for gates that do not look at their input.
        usage: share of samples that ran each unit.
    """

    num_samples: int
    num_routes: int
    entropy: float
    condition_information: float | None
    gate_information: float
    usage: tuple[float, ...]

    def alarms(self, least_usage: float = 0.02, least_information: float = 1e-3) -> list[str]:
        """What looks like a collapse, in words; empty where all is well."""
        found = []
        if self.num_routes == 1 and self.num_samples > 1:
            found.append(f"all {self.num_samples} samples took the same route")
        if self.gate_information < least_information:
            found.append(f"gates do not depend on their input ({self.gate_information:.1e} nats)")
        dead = [unit for unit, share in zip(UNITS, self.usage, strict=True) if share < least_usage]
        if dead and len(dead) < len(UNITS):
            found.append(f"{', '.join(dead)} ran in less than {least_usage:.0%} of the samples")
        return found


def route_diversity(
    choice: Int64[Tensor, "n u"], probs: Float[Tensor, "n u k"], conditions: Sequence[frozenset[str]]
) -> RouteDiversity:
    """Measures over many samples; meaningful for some hundreds at least.

    Raises:
        ValueError: no samples.
    """
    if not len(choice):
        raise ValueError("expected routed samples to measure, got none")
    _, route, counts = torch.unique(choice, dim=0, return_inverse=True, return_counts=True)
    words = {word: index for index, word in enumerate(sorted({_word(given) for given in conditions}))}
    condition = torch.tensor([words[_word(given)] for given in conditions], device=choice.device)
    mean_probs = probs.double().mean(dim=0)
    gates = entropy_of(mean_probs) - entropy_of(probs.double()).mean(dim=0)
    return RouteDiversity(
        num_samples=len(choice),
        num_routes=len(counts),
        entropy=float(entropy_of(counts / len(choice))),
        condition_information=None if len(words) < 2 else mutual_information(route, condition),
        gate_information=float(gates.sum().clamp_min(0)),
        usage=tuple((choice != SKIP).double().mean(dim=0).tolist()),
    )


def entropy_of(probs: Float[Tensor, "*n k"]) -> Float[Tensor, "*n"]:
    return -(probs * probs.clamp_min(1e-12).log()).sum(dim=-1)


def mutual_information(one: Int64[Tensor, "n"], other: Int64[Tensor, "n"]) -> float:
    """Of two labels, corrected by (cells - rows - columns + 1) / 2N for what chance alone would give."""
    num = len(one)
    joint = torch.zeros(int(one.max()) + 1, int(other.max()) + 1, dtype=torch.float64, device=one.device)
    joint.index_put_((one, other), torch.ones(num, dtype=torch.float64, device=one.device), accumulate=True)
    joint = joint / num
    rows, columns = joint.sum(dim=1), joint.sum(dim=0)
    plain = entropy_of(rows) + entropy_of(columns) - entropy_of(joint.flatten())
    cells, num_rows, num_columns = ((p > 0).sum() for p in (joint.flatten(), rows, columns))
    bias = (cells - num_rows - num_columns + 1) / (2 * num)
    return max(0.0, float(plain - bias))


def _word(conditions: frozenset[str]) -> str:
    return " ".join(sorted(conditions))
