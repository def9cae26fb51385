"""What everything is painted with.

Most of what is made draws from one palette. Some classes have colours that are typical of them, as in any town: cones
are mostly orange with a white band, barriers red and white or concrete, machines yellow, workers dressed for being
seen, people have skin. None is sure, and street furniture wears the same. What LiDAR sees of it is drawn alike for
every class.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import TypeVar

import numpy as np
from jaxtyping import Float

_ORANGE, _WHITE, _RED, _CONCRETE, _YELLOW, _LIME, _DARK = (
    *((0.85, 0.30, 0.06), (0.85, 0.85, 0.82), (0.72, 0.08, 0.07), (0.45, 0.44, 0.42)),
    *((0.80, 0.58, 0.06), (0.62, 0.80, 0.12), (0.14, 0.14, 0.15)),
)
_TYPICAL = {
    "traffic_cone": ((0.55, _ORANGE, _WHITE), (0.10, _YELLOW, _DARK), (0.05, _RED, _WHITE)),
    "barrier": ((0.25, _RED, _WHITE), (0.15, _ORANGE, _WHITE), (0.20, _CONCRETE, _CONCRETE)),
    "construction_vehicle": ((0.35, _YELLOW, _DARK), (0.15, _ORANGE, _DARK)),
    "human.pedestrian.construction_worker": ((0.35, _ORANGE, _DARK), (0.25, _LIME, _DARK)),
    "truck": ((0.12, _WHITE, _WHITE), (0.08, _ORANGE, _WHITE), (0.06, _YELLOW, _DARK)),
    "bus": ((0.12, _YELLOW, _DARK), (0.12, _RED, _WHITE), (0.05, _ORANGE, _WHITE)),
    "trailer": ((0.15, _WHITE, _CONCRETE), (0.05, _ORANGE, _WHITE), (0.05, _RED, _WHITE)),
    "car": ((0.15, _WHITE, _DARK), (0.15, _DARK, _DARK), (0.06, _RED, _DARK)),
    "bollard": ((0.20, _ORANGE, _WHITE), (0.15, _RED, _WHITE), (0.15, _CONCRETE, _CONCRETE)),
    "sign": ((0.15, _ORANGE, _WHITE), (0.15, _RED, _WHITE), (0.10, _YELLOW, _DARK)),
    "bin": ((0.12, _ORANGE, _DARK), (0.08, _YELLOW, _DARK)),
}
"""Share, primary and secondary colour; what is left of 1 comes from the common palette."""
_FADED = 0.06
_SKIN_RGB = np.array([[0.75, 0.54, 0.44], [0.58, 0.38, 0.28], [0.33, 0.20, 0.14]])
_PEOPLE = ("pedestrian", "bicycle", "motorcycle")

A = TypeVar("A")


def livery(name: str, category: str, rng: np.random.Generator) -> Float[np.ndarray, "3 3"]:
    """RGB in [0, 1] of the primary parts, the secondary ones, and of skin (which only people show)."""
    colours, draw, fading = random_colours(rng), rng.random(), rng.normal(0.0, _FADED, (2, 3))
    for share, *typical in _TYPICAL.get(category, _TYPICAL.get(name, ())):
        draw -= share
        if draw < 0:
            colours = np.clip(np.array(typical) * rng.uniform(0.7, 1.05) + fading, 0.02, 0.95)
            break
    tone, shade = rng.uniform(0.0, len(_SKIN_RGB) - 1.0), rng.uniform(0.9, 1.1)
    if name in _PEOPLE:
        skin = shade * np.array([np.interp(tone, np.arange(len(_SKIN_RGB)), column) for column in _SKIN_RGB.T])
    else:
        skin = random_colours(rng)[0]
    return np.concatenate([colours, skin[None]])


def random_colours(rng: np.random.Generator) -> Float[np.ndarray, "2 3"]:
    """Two RGB colours from one palette for everything that is made: greys and hues, dark and light."""
    hue, saturation, value = rng.random(2), rng.random(2) ** 1.5 * 0.85, rng.uniform(0.12, 0.92, 2)
    sector = (hue[:, None] * 6 + np.array([5.0, 3.0, 1.0])) % 6
    return value[:, None] * (1 - saturation[:, None] * np.clip(np.minimum(sector, 4 - sector), 0, 1))


def random_reflectivity(rng: np.random.Generator) -> Float[np.ndarray, "2"]:
    """Diffuse reflectivities at 905 nm from one distribution for everything that is made: mostly dark, some bright."""
    return 0.05 + 0.8 * rng.beta(1.3, 2.6, 2)


def shuffled_materials(actors: Sequence[A], rng: np.random.Generator) -> list[A]:
    """The same actors, each in the colours and reflectivities of one of another class (the class drawn first)."""
    by_class: dict[str, list[A]] = {}
    for actor in actors:
        by_class.setdefault(actor.name, []).append(actor)
    if len(by_class) < 2:
        return list(actors)
    names = sorted(by_class)
    dressed = []
    for actor in actors:
        others = [name for name in names if name != actor.name]
        wardrobe = by_class[others[int(rng.integers(len(others)))]]
        donor = wardrobe[int(rng.integers(len(wardrobe)))]
        dressed.append(replace(actor, colours=donor.colours, reflectivity=donor.reflectivity))
    return dressed
