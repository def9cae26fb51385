"""Every way of working on fewer tokens is one line: from the page's line to tokens that are left out."""

import inspect
import math
import re
import shlex
from pathlib import Path

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf

from fusion.commands.compose import compose, instantiate
from fusion.encoders import guide_learned, pillar_drop, vit_learned, vit_tokens
from fusion.heads.losses import center_loss, weighted_sum
from fusion.heads.targets import center_targets
from fusion.model import FusionModel
from fusion.trunk import tokens, tokens_windows
from tests.fusion.random_batch import random_batch

PAGE = Path(__file__).parents[2] / "docs" / "adaptive.md"
SIZE_PX = (32, 64)  # 4 x 8 patches of 8, of six views
BATCH = random_batch(1, 0, SIZE_PX, depth_stride=8)
NAMED = {
    name: kind
    for module in (tokens, tokens_windows, vit_tokens, vit_learned, guide_learned, pillar_drop)
    for name, kind in inspect.getmembers(module, inspect.isclass)
}
TAUGHT = {"KeepTokens", "DynamicVit", "AVit"}
"""With a term of their own in the loss."""
MODELS = (
    ("KeepTokens", "drop_regions"),
    ("KeepWindows", "PillarDrop"),
    *((name,) for name in ("EVit", "ToMe", "DynamicVit", "AVit", "GuidedKeep", "GuideScore")),
)
"""Lines of different places go into one model: building one is what takes the time."""


def lines() -> dict[str, list[str]]:
    """Words for the command line by class, from the page's table."""
    text = PAGE.read_text(encoding="utf-8").partition("## Fewer tokens\n")[2].partition("```")[0]
    return {name: shlex.split(line) for name, line in re.findall(r"^\|[^|]*\| `(\w+)` \|.*\| `(.*)` \|$", text, re.M)}


def smaller(node):
    """The same model on small pictures and a coarse grid: it is to be built and run, not to be good."""
    if isinstance(node, list):
        return [smaller(one) for one in node]
    if not isinstance(node, dict):
        return node
    if node.get("_target_") == "sensors.grid.BevGrid.square":
        return {**node, "cell_m": 2 * node["cell_m"]}
    return {key: list(SIZE_PX) if key == "image_size_px" else smaller(value) for key, value in node.items()}


def built(words: list[str]) -> FusionModel:
    torch.manual_seed(0)
    node = OmegaConf.to_container(compose(words).model, resolve=True)
    return instantiate(OmegaConf.create(smaller(node)))


def test_the_page_has_a_line_for_every_way():
    methods = {
        name
        for module in (vit_tokens, vit_learned)
        for name, kind in inspect.getmembers(module, inspect.isclass)
        if kind.__module__ == module.__name__ and hasattr(kind, "gflops")
    }
    ways = methods - {"Dense", "TokenMethod"}
    assert ways == {"EVit", "ToMe", "GuidedKeep", "DynamicVit", "AVit"}
    others = {"KeepTokens", "KeepWindows", "GuideScore", "drop_regions", "PillarDrop"}
    assert set(lines()) == ways | others == {name for names in MODELS for name in names}


@pytest.mark.parametrize("names", MODELS, ids="+".join)
def test_a_way_from_its_line_trains_a_step_and_leaves_tokens_out(names):
    model = built(list(dict.fromkeys(word for name in names for word in lines()[name])))
    own = {name: list(_parts(model, name)) for name in names}
    assert [name for name, parts in own.items() if not parts] in ([], ["drop_regions"])  # which is a function
    _step(model, own)
    model.eval()
    _as_if_learnt(model, names)
    with torch.inference_mode():
        seen, output = _watched(model)
    assert bool(output.head.heatmap.isfinite().all())
    assert output.token_loss is None
    for name in names:
        COUNTED[name](seen)


def _parts(model: FusionModel, name: str):
    """Of the class, wherever they are."""
    for module in model.modules():
        method = getattr(module, "method", None)
        for one in (module, None if isinstance(method, torch.nn.Module) else method):
            if type(one) is NAMED.get(name):
                yield one


def _step(model: FusionModel, own: dict[str, list]) -> None:
    """One step of gradient descent: finite everywhere, and what the methods have to learn is moved by it."""
    model.train()
    output = model(BATCH, plan=model.full_plan(BATCH))
    assert (output.token_loss is not None) == bool(TAUGHT & set(own))
    loss = weighted_sum(center_loss(output.head, center_targets(BATCH.boxes, 1, model.head.grid)))
    loss = loss + output.depth_loss + (0.0 if output.token_loss is None else output.token_loss)
    if "AVit" in own:
        (halting,) = own["AVit"]
        expected = halting.ponder_weight * halting.last_ponder + 0.1 * halting.halting_divergence()
        assert output.token_loss.item() == pytest.approx(expected.item())
    if "DynamicVit" in own:
        teacher = model.cameras.encoder.teacher
        assert bool((teacher.last_terms > 0).all())
        expected = own["DynamicVit"][0].ratio_loss() + teacher.token_loss()
        assert output.token_loss.item() == pytest.approx(expected.item())
    modules = [part for parts in own.values() for part in parts if isinstance(part, torch.nn.Module)]
    before = [[parameter.detach().clone() for parameter in part.parameters()] for part in modules]
    loss.backward()
    assert all(bool(one.grad.isfinite().all()) for one in model.parameters() if one.grad is not None)
    torch.optim.SGD(model.parameters(), lr=0.1).step()
    for part, old in zip(modules, before, strict=True):
        assert not old or any(not torch.equal(*pair) for pair in zip(old, part.parameters(), strict=True))


def _as_if_learnt(model: FusionModel, names: tuple[str, ...]) -> None:
    """What training would teach, so that something is left out."""
    if "AVit" in names:
        model.cameras.encoder.method.beta.data.fill_(100.0)  # everything halts after the first block
    if "KeepTokens" in names:
        model.trunk.stages[-1][1].set_rate(-math.inf, 0.5)


def _watched(model: FusionModel):
    """A whole pass: tokens that MLPs of ViT and trunk worked on, points that the LiDAR was given, pillars chosen."""
    seen, hooks = {"views": 0, "bev": 0, "points": None, "pillars": None}, []

    def counting(place):
        def count(layer, given):
            seen[place] += given[0].numel() // layer.in_features

        return count

    for place, part in (("views", model.cameras), ("bev", model.trunk)):
        layers = [layer for title, layer in part.named_modules() if title.endswith("mlp.fc1")]
        hooks += [layer.register_forward_pre_hook(counting(place)) for layer in layers]
    hooks.append(model.lidar.full.register_forward_pre_hook(lambda _, given: seen.update(points=given[0])))
    for part in _parts(model, "PillarDrop"):
        hooks.append(part.register_forward_hook(lambda _, given, chosen: seen.update(pillars=chosen)))
    try:
        return seen, model(BATCH, plan=model.full_plan(BATCH))
    finally:
        for hook in hooks:
            hook.remove()


def _views(*per_block: int):
    """Tokens of one view in each of six blocks, the class token among them; 33 without a method."""

    def check(seen):
        assert len(per_block) == 6
        assert seen["views"] == 6 * sum(per_block)

    return check


def _bev(seen) -> None:
    assert seen["bev"] == 16 * 16 / 2  # half of the cells of the last stage


def _regions(seen) -> None:
    """Half of the regions of 25.6 m that hold points, and all of their points."""
    cells = [np.floor((points[:, :2].numpy() + 51.2) / 25.6) for points in (BATCH.lidar.points, seen["points"].points)]
    every, kept = (np.unique(some, axis=0, return_counts=True) for some in cells)
    assert len(kept[0]) == math.ceil(len(every[0]) / 2)
    assert sorted(kept[1]) == sorted(every[1])[-len(kept[1]) :]


def _pillars(seen) -> None:
    """As many pillars as fit into half of the points."""
    chosen = seen["pillars"]
    points = torch.bincount(chosen.of_point)[chosen.keep]
    assert 0.4 * len(chosen.of_point) < int(points.sum()) <= 0.5 * len(chosen.of_point)


def _guided(seen) -> None:
    _views(*[17] * 6)(seen)
    _pillars(seen)


COUNTED = {
    "KeepTokens": _bev,
    "KeepWindows": _bev,
    "EVit": _views(33, 33, 24, 24, 18, 18),  # 32, 22 and 15 patches; what was fused stays, each time
    "ToMe": _views(27, 21, 15, 9, 5, 3),  # 26, 20, 14, 8, then half of what is left
    "DynamicVit": _views(33, 33, 23, 23, 16, 16),
    "AVit": _views(33, 1, 1, 1, 1, 1),  # the class token goes on to the end
    "GuidedKeep": _views(*[17] * 6),
    "GuideScore": _guided,
    "drop_regions": _regions,
    "PillarDrop": _pillars,
}
