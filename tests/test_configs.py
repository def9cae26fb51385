"""Every configuration composes and builds what it names; every `_target_` is ours; every key is an argument."""

import inspect
from pathlib import Path

import pytest
from omegaconf import DictConfig, ListConfig, OmegaConf

from fusion.commands.compose import compose, config_folder, foreign_targets, instantiate
from fusion.robustness.axes import chosen_scenarios

GROUPS = ("data", "model", "faults", "stages", "trainer", "suite", "experiment")
CHOICES = [(group, path.stem) for group in GROUPS for path in sorted((config_folder() / group).glob("*.yaml"))]
ROOT = "data.root=/somewhere"


def nodes(node):
    """All nested nodes."""
    if isinstance(node, DictConfig):
        yield node
        children = [node._get_node(key) for key in node]
    else:
        children = [node._get_node(i) for i in range(len(node))] if isinstance(node, ListConfig) else []
    for child in children:
        if isinstance(child, (DictConfig, ListConfig)) and not child._is_none():
            yield from nodes(child)


@pytest.mark.parametrize(("group", "name"), CHOICES, ids=[f"{group}={name}" for group, name in CHOICES])
def test_composes_with_keys_that_are_arguments(group, name):
    import hydra.utils

    config = compose([f"{group}={name}", ROOT])
    OmegaConf.to_container(config, resolve=True, throw_on_missing=True)
    assert not foreign_targets(config)
    targets = [node for node in nodes(config) if node.get("_target_")]
    assert targets
    for node in targets:
        target = hydra.utils.get_object(node["_target_"])
        parameters = inspect.signature(target).parameters
        if not any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values()):
            unknown = set(node) - {"_target_", *parameters}
            assert not unknown, f"{node['_target_']} has no argument {sorted(unknown)}"


WITH_PICTURES = {"base", "tiny", "tiny_adaptive", "tiny_exits"}
"""Models whose image backbone is a convolutional one."""

ONLY_FOR = {
    "adaptive": ({"tiny_adaptive"}, "exit"),
    "bench-adaptive": ({"tiny_adaptive"}, "exit"),
    "bench": (WITH_PICTURES, "cameras.encoder.laterals"),
    "proof": (WITH_PICTURES, "cameras.encoder.laterals"),
    "sample-weights": ({"tiny_adaptive", "tiny_exits"}, "exit"),
    "two-stage-exits": ({"tiny_adaptive", "tiny_exits"}, "exit"),
    "views": (WITH_PICTURES - {"base"}, "class_channels|cameras.encoder.laterals"),
}
"""Stages that train parts which only some models have, and what the refusal of the others names."""


@pytest.mark.parametrize("name", sorted(path.stem for path in (config_folder() / "model").glob("*.yaml")))
def test_models_build_and_take_the_stages(name):
    config = compose([f"model={name}"])
    model = instantiate(config.model)
    for path in sorted((config_folder() / "stages").glob("*.yaml")):
        stages = instantiate(compose([f"stages={path.stem}"]).stages, _partial_=True)
        models, named = ONLY_FOR.get(path.stem, ({name}, ""))
        if name not in models:
            with pytest.raises(ValueError, match=named):
                stages(model=model, seed=0)
            continue
        assert stages(model=model, seed=0).curriculum.stages[-1].until == 1.0


@pytest.mark.parametrize("name", sorted(path.stem for path in (config_folder() / "faults").glob("*.yaml")))
def test_faults_build(name):
    config = compose([f"faults={name}"])
    injector = instantiate(config.faults)
    assert injector is None or hasattr(injector, "apply")


def test_suites_name_scenarios():
    for path in (config_folder() / "suite").glob("*.yaml"):
        assert chosen_scenarios(compose([f"suite={path.stem}"]).suite, [])


def test_a_foreign_class_in_a_configuration_is_found():
    node = OmegaConf.create({"model": {"_target_": "fusion.model.FusionModel", "head": [{"_target_": "os.system"}]}})
    assert foreign_targets(node) == ["os.system"]
    assert foreign_targets(node, ("os.system",)) == []


def test_one_group_level():
    folders = [path for path in config_folder().rglob("*") if path.is_dir()]
    assert all(folder.parent == Path(config_folder()) for folder in folders)
