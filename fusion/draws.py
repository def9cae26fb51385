"""Random numbers of training, keyed by what they are for instead of by what was drawn before.

A run that is resumed, or has other workers or ranks, draws the same numbers at the same step.
"""

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager

import torch


def keyed_seed(*key: int | str) -> int:
    """A 63-bit seed from a key such as (seed, "budget", step, rank)."""
    digest = hashlib.sha256("/".join(map(str, key)).encode()).digest()
    return int.from_bytes(digest[:8], "little") >> 1


def keyed_generator(*key: int | str) -> torch.Generator:
    """A CPU generator that depends on nothing but the key: draw there, then move to the device."""
    return torch.Generator().manual_seed(keyed_seed(*key))


@contextmanager
def keyed_randomness(device: torch.device, *key: int | str) -> Iterator[None]:
    """Seed torch's global generators by the key, and put back their state afterwards.

    For code that draws inside (Gumbel noise on the device, dropout of a backbone) and takes no generator.
    """
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(keyed_seed(*key))
        yield
