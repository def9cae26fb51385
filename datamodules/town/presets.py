"""What kind of town to write: the configuration, its presets, and how they are spelled on the command line."""

import math
from dataclasses import dataclass, fields, replace

CONDITIONS = ("day", "night", "fog", "rain")


@dataclass(frozen=True)
class TownConfig:
    """A town. Equal configurations give equal bytes.

    Attributes:
        num_train_scenes, num_val_scenes: scenes of the splits ``town_train`` and ``town_val``.
        samples_per_scene: keyframes, half a second apart.
        image_scale: 1 gives nuScenes' 1600x900 pictures, 0.25 gives 400x225.
        lidar_sweeps: *extra* 20 Hz LiDAR sweeps before each keyframe, under ``sweeps/``; 0 writes keyframes only.
        radar_sweeps: *extra* 13 Hz sweeps before each keyframe of each radar.
        camera_sweeps: *extra* 12 Hz pictures before each keyframe of each camera.
        num_actors: how many labelled objects stand or move within 50 m of the ego, on average.
        seed: of everything.
        day_weight, night_weight, fog_weight, rain_weight: shares of the scenes, not necessarily summing to 1.
        dark_share: how many of the fog and of the rain scenes are at night.
        shuffle_materials: the same town, but everything wears the colours and reflectivities of something of another
            class: what a model loses on it, it had read from liveries.
    """

    num_train_scenes: int = 4
    num_val_scenes: int = 2
    samples_per_scene: int = 10
    image_scale: float = 0.25
    lidar_sweeps: int = 0
    radar_sweeps: int = 0
    camera_sweeps: int = 0
    num_actors: int = 60
    seed: int = 0
    day_weight: float = 0.35
    night_weight: float = 0.25
    fog_weight: float = 0.2
    rain_weight: float = 0.2
    dark_share: float = 0.34
    shuffle_materials: bool = False

    def __post_init__(self):
        lowest = {"num_train_scenes": 1, "num_val_scenes": 1, "samples_per_scene": 1, "num_actors": 1}
        for field in fields(self):
            value = getattr(self, field.name)
            if not math.isfinite(value):
                raise ValueError(f"expected {field.name} to be a finite number, got {value}")
            if value < lowest.get(field.name, 0):
                raise ValueError(f"expected {field.name} >= {lowest.get(field.name, 0)}, got {value}; ask for more")
        if not 0.02 <= self.image_scale <= 1.0:
            raise ValueError(f"expected image_scale in [0.02, 1], got {self.image_scale}; 1 is 1600x900")
        if self.lidar_sweeps > 9 or self.radar_sweeps > 5 or self.camera_sweeps > 5:
            raise ValueError(
                f"expected at most 9 extra LiDAR, 5 radar and 5 camera sweeps between two keyframes, got "
                f"{self.lidar_sweeps}, {self.radar_sweeps} and {self.camera_sweeps}"
            )
        if self.dark_share > 1.0:
            raise ValueError(f"expected dark_share in [0, 1], got {self.dark_share}; 1 puts all fog and rain at night")
        if sum(self.condition_weights) <= 0:
            raise ValueError("expected one of day_weight, night_weight, fog_weight, rain_weight above 0, got none")

    @property
    def condition_weights(self) -> tuple[float, ...]:
        """In the order of CONDITIONS."""
        return tuple(getattr(self, f"{name}_weight") for name in CONDITIONS)

    @property
    def num_samples(self) -> int:
        return (self.num_train_scenes + self.num_val_scenes) * self.samples_per_scene


PRESETS = {
    "tiny": TownConfig(num_train_scenes=2, num_val_scenes=1, samples_per_scene=3, image_scale=0.1),
    # Many short scenes: neighbouring keyframes of one scene teach little that is new.
    "demo": TownConfig(num_train_scenes=100, num_val_scenes=16, samples_per_scene=3, lidar_sweeps=1, radar_sweeps=2),
    # The fixed reference that published figures name: what it holds changes only with the world's version.
    "bench": TownConfig(num_train_scenes=160, num_val_scenes=40, samples_per_scene=5, lidar_sweeps=1, radar_sweeps=2),
    "large": TownConfig(num_train_scenes=160, num_val_scenes=40, samples_per_scene=40),
}


def town_config(preset: str, overrides: dict[str, str]) -> TownConfig:
    """A preset with fields replaced by the text of an override, e.g. ``{"seed": "3"}``.

    Raises:
        ValueError: unknown preset or field, or a text that is no number of the field's type.
    """
    if preset not in PRESETS:
        raise ValueError(f"expected preset to be one of {', '.join(PRESETS)}, got '{preset}'")
    types = {field.name: field.type for field in fields(TownConfig)}
    values = {}
    for name, text in overrides.items():
        if name not in types:
            raise ValueError(f"expected one of {', '.join(types)}, got '{name}'; see dynfusion synth --help")
        try:
            values[name] = {"true": True, "false": False}[text] if types[name] is bool else types[name](text)
        except (ValueError, KeyError):
            kind = {int: "a whole number", float: "a number", bool: "true or false"}[types[name]]
            raise ValueError(f"expected {name} to be {kind}, got '{text}'") from None
    return replace(PRESETS[preset], **values)
