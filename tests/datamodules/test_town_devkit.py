"""The devkit is the oracle of the town's format."""

from nuscenes import NuScenes


def test_loads(tiny_town):
    town = NuScenes("v1.0-town", str(tiny_town), verbose=False)
    assert len(town.sample) == 9
