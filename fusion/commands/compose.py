"""Hydra's side of the commands: settings from the command line, configurations, instances."""

from dataclasses import fields
from pathlib import Path
from typing import TypeVar

import fusion

OUR_PACKAGES = ("fusion", "datamodules", "sensors")
Options = TypeVar("Options")


def config_folder() -> Path:
    """Where the YAML files are: inside the installed package, or beside it in a checkout."""
    package = Path(fusion.__file__).parent
    return package / "configs" if (package / "configs").is_dir() else package.parent / "configs"


def compose(overrides: list[str]):
    """The training configuration with the user's overrides, as an OmegaConf node.

    Raises:
        hydra.errors.HydraException: an unknown key or group; its first line names it.
    """
    import hydra
    from hydra.core.global_hydra import GlobalHydra

    GlobalHydra.instance().clear()
    with hydra.initialize_config_dir(str(config_folder()), version_base="1.3"):
        return hydra.compose("train", overrides=overrides)


def parse_options(arguments: list[str], kind: type[Options]) -> Options:
    """Settings of a command from ``key=value`` words; types are those of the dataclass ``kind``.

    Raises:
        ValueError: a word without ``=``, an unknown key, or a value of another type.
    """
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    names = [field.name for field in fields(kind)]
    for argument in arguments:
        key, equals, _ = argument.partition("=")
        if not equals or key not in names:
            raise ValueError(f"expected settings key=value with keys {', '.join(names)}; got '{argument}'")
    try:
        return OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(kind), OmegaConf.from_dotlist(arguments)))
    except OmegaConfBaseException as error:
        raise ValueError(f"{str(error).splitlines()[0]}; settings are {', '.join(names)}") from error


def split_arguments(arguments: list[str], kind: type) -> tuple[list[str], list[str]]:
    """The command's own settings, and the rest: overrides of the configuration."""
    names = {field.name for field in fields(kind)}
    own = [argument for argument in arguments if argument.partition("=")[0] in names or "=" not in argument]
    return own, [argument for argument in arguments if argument not in own]


def instantiate(node, **extra):
    """Build what a node names; nested nodes first."""
    import hydra.utils

    return hydra.utils.instantiate(node, _convert_="all", **extra)


def foreign_targets(node, allowed: tuple[str, ...] = ()) -> list[str]:
    """``_target_`` names in a configuration that are outside our packages and not allowed by name."""
    from omegaconf import DictConfig, ListConfig

    if isinstance(node, DictConfig):
        children = [node[key] for key in node]
        target = node.get("_target_")
    elif isinstance(node, ListConfig):
        children, target = list(node), None
    else:
        return []
    found = [name for child in children for name in foreign_targets(child, allowed)]
    if target is not None and target.split(".")[0] not in OUR_PACKAGES and target not in allowed:
        found.append(target)
    return found
