"""Camera faults on uint8 RGB pixels, by theme."""

from sensors.faults.camera_blur import BLUR_FAULTS, blurred_along
from sensors.faults.camera_frost import CAMERA_FROST
from sensors.faults.camera_glare import GLARE_FAULTS
from sensors.faults.camera_lens import LENS_FAULTS
from sensors.faults.camera_light import LIGHT_FAULTS
from sensors.faults.camera_loss import LOSS_FAULTS
from sensors.faults.camera_noise import NOISE_FAULTS
from sensors.faults.camera_pixels import blended

__all__ = ["CAMERA_FAULTS", "blended", "blurred_along"]

CAMERA_FAULTS = (*LIGHT_FAULTS, *GLARE_FAULTS, *NOISE_FAULTS, *BLUR_FAULTS, *LOSS_FAULTS, *LENS_FAULTS, CAMERA_FROST)
