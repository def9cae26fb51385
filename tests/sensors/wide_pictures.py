"""Pictures of full width for tests of published corruptions, and what clipping makes of normal noise."""

import math

import cv2
import numpy as np


def wide(height=60, seed=0):
    """Full width, so that lengths are the published ones."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 256, (height // 6, 160, 3), dtype=np.uint8)
    return cv2.resize(coarse, (1600, height), interpolation=cv2.INTER_LINEAR)


def flat(grey, height=60):
    return np.full((height, 1600, 3), grey, np.uint8)


def clipped_normal(mean, sigma):
    """Mean and deviation of a normal value that is clipped to 0 to 255 and cut to whole numbers."""

    def below(value):
        return 0.5 * (1 + math.erf((value - mean) / (sigma * math.sqrt(2))))

    shares = [below(1), *(below(k + 1) - below(k) for k in range(1, 255)), 1 - below(255)]
    first = sum(k * share for k, share in enumerate(shares))
    return first, math.sqrt(sum((k - first) ** 2 * share for k, share in enumerate(shares)))
