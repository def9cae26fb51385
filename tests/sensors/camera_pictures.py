"""Camera faults by name on plain pictures, and how much detail a picture has."""

import numpy as np

from sensors.faults.camera import CAMERA_FAULTS

BY_NAME = {fault.name: fault for fault in CAMERA_FAULTS}


def flat(grey, height=90, width=160):
    return np.full((height, width, 3), grey, np.uint8)


def harmed(name, pixels, level, seed=0):
    return BY_NAME[name].effect.function(pixels, level, np.random.default_rng(seed))


def detail(pixels):
    """Mean of the steps between neighbours, in grey levels."""
    return np.abs(np.diff(pixels.astype(float), axis=1)).mean()
