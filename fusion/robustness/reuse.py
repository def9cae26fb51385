"""What one cell of a suite computed, another need not compute again: outputs of encoders by their inputs.

Most cells of a suite harm one sensor and leave the others as they are. An encoder's output for a sample depends on that
sample's own input alone, so it is kept under a digest of this input and taken from memory wherever the very same input
comes again, in whatever cell. No knowledge of faults is involved: what differs in one bit is computed.

A view encoder that looks at more than the picture (patches chosen by points of another sensor), or that says afterwards
what each row cost, runs as ever, and so does the lift behind it.
"""

import hashlib
import time
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor, nn

from datamodules.batch import PointBatch
from fusion.encoders.lift import ViewRows
from fusion.encoders.views import ViewFeatures
from fusion.ops.projection import PosedViews

_SKETCH = 16
"""Bytes of a digest."""


@dataclass
class _Kept:
    """One row's outputs, how long they took, and whether they are never dropped for others."""

    values: tuple[Tensor, ...]
    ms: float
    lasts: bool = False

    @property
    def num_bytes(self) -> int:
        return sum(value.numel() * value.element_size() for value in self.values)


@dataclass
class EncoderReuse:
    """Outputs of encoders, of the depths that points give the views, and of the lift, within a limit of memory.

    Every pass goes through the samples in the same order, so that what was used longest ago is what comes next. Rows
    computed while ``lasting`` is set are therefore never dropped; the others go, the least recently used first, and are
    not kept at all where there is no room beside the lasting ones.

    Args:
        max_gb: of memory for what is kept; 0 keeps nothing.

    Attributes:
        lasting: whether the rows of this pass will come again in most others: clean data.
        num_taken, num_computed: rows (views, samples) taken from memory and computed.
    """

    max_gb: float = 2.0
    lasting: bool = False
    num_taken: int = 0
    num_computed: int = 0
    _kept: dict[bytes, _Kept] = field(default_factory=dict)
    _passing: OrderedDict = field(default_factory=OrderedDict)
    _num_bytes: int = 0
    _saved_ms: float = 0.0
    _view_keys: list[list[bytes]] = field(default_factory=list)

    @contextmanager
    def applied(self, model: nn.Module) -> Iterator[None]:
        """The model's encoders look into memory first; a model without such parts is left alone."""
        wraps = {"views": self._views, "lift": self._lift, "depths": self._depths}
        originals = []
        for name, module in self._parts(model):
            method = "depths_of" if name == "depths" else "forward"
            originals.append((module, method, vars(module).get(method)))
            setattr(module, method, wraps.get(name, self._points)(name, getattr(module, method)))
        self._saved_ms = 0.0
        try:
            yield
        finally:
            for module, method, own in originals:
                delattr(module, method)
                if own is not None:
                    setattr(module, method, own)
            self._view_keys.clear()

    def saved_ms(self) -> float:
        """What was not computed since the last call would have taken so much longer; looking it up is taken off."""
        saved, self._saved_ms = self._saved_ms, 0.0
        return saved

    @staticmethod
    def _parts(model: nn.Module) -> list[tuple[str, nn.Module]]:
        """Encoders and lift of a FusionModel; views are shared by both branches, point encoders are not."""
        parts = []
        cameras = getattr(model, "cameras", None)
        if (
            cameras is not None
            and getattr(model, "camera_guide", None) is None
            and not hasattr(cameras.encoder, "saved_gflops")
        ):
            parts += [("views", cameras.encoder), ("lift", cameras.lift)]
            parts += [("depths", cameras)] if cameras.depth_from_lidar else []
        for sensor in ("lidar", "radar"):
            branches = getattr(model, sensor, None)
            encoders = {} if branches is None else branches.encoders()
            kept = {branch: one for branch, one in encoders.items() if not hasattr(one, "saved_gflops")}
            parts += [(f"{sensor}/{branch}", encoder) for branch, encoder in kept.items()]
        return parts

    def _views(self, name: str, forward):
        def encode(images: Tensor) -> ViewFeatures:
            started = time.perf_counter()
            keys = [_digest(name, image) for image in images]
            self._view_keys.append(keys)
            context, depth = self._rows(keys, lambda rows: _of_views(forward(images[rows])), started)
            return ViewFeatures(context, depth)

        return encode

    def _depths(self, name: str, measure):
        def depths_of(points: PointBatch, views: PosedViews, feature_size: tuple[int, int]) -> Tensor:
            started = time.perf_counter()
            what = f"{name}{views.image_size_px}{feature_size}"
            of_sample = [_digest(what, rows) for rows in _by_sample(points)]
            samples = zip(_poses(views).cpu(), views.sample.tolist(), strict=True)
            keys = [_digest("row", pose) + of_sample[row] for pose, row in samples]

            def compute(rows: Tensor) -> tuple[Tensor]:
                return (measure(points, views.posed(rows.to(views.sample.device)), feature_size),)

            return self._rows(keys, compute, started)[0]

        return depths_of

    def _points(self, name: str, forward):
        def encode(points: PointBatch) -> Tensor:
            started = time.perf_counter()
            keys = [_digest(name, rows) for rows in _by_sample(points)]
            return self._rows(keys, lambda rows: (forward(points.rows(rows)),), started)[0]

        return encode

    def _lift(self, name: str, forward):
        def lift(views: list[ViewRows], num_samples: int) -> tuple[Tensor, Tensor]:
            started = time.perf_counter()
            of_branch, self._view_keys = self._view_keys, []
            parts: list[list[bytes]] = [[] for _ in range(num_samples)]
            for keys, rows in zip(of_branch, views, strict=True):
                geometry = _poses(rows)
                geometry = torch.cat([geometry, rows.weight[:, None].to(geometry)], dim=1)
                if rows.measured_m is not None:
                    geometry = torch.cat([geometry, rows.measured_m.flatten(1).to(geometry)], dim=1)
                for key, own, sample in zip(keys, geometry.cpu(), rows.sample.tolist(), strict=True):
                    parts[sample].append(_digest("row", own) + key)
            keys = [hashlib.blake2b(b"lift" + b"".join(part), digest_size=_SKETCH).digest() for part in parts]

            def compute(chosen: Tensor) -> tuple[Tensor, ...]:
                place = torch.full((num_samples,), -1, dtype=torch.int64, device=chosen.device)
                place[chosen] = torch.arange(len(chosen), device=chosen.device)
                return forward([_of_samples(rows, place.to(rows.sample.device)) for rows in views], len(chosen))

            return self._rows(keys, compute, started)

        return lift

    def _rows(self, keys: list[bytes], compute, started: float) -> tuple[Tensor, ...]:
        """Outputs of all rows: those that are known from memory, the others computed together and kept."""
        new = dict.fromkeys(key for key in keys if key not in self._kept)  # once each: black pictures are all alike
        missing = [keys.index(key) for key in new]
        found = {key: self._kept[key] for key in set(keys) if key in self._kept}
        overhead_ms = (time.perf_counter() - started) * 1e3
        if len(missing) == len(keys):
            computed = compute(torch.arange(len(keys)))
        elif missing:
            computed = compute(torch.tensor(missing))
        looked_up = time.perf_counter()
        each_ms = ((looked_up - started) * 1e3 - overhead_ms) / max(len(missing), 1)
        for place, row in enumerate(missing):
            self._keep(keys[row], _Kept(tuple(part[place].clone() for part in computed), each_ms, self.lasting))
        self.num_computed += len(missing)
        self.num_taken += len(keys) - len(missing)
        if len(missing) < len(keys):
            at = {keys[row]: place for place, row in enumerate(missing)}
            rows = [tuple(part[at[key]] for part in computed) if key in at else found[key].values for key in keys]
            result = tuple(torch.stack(parts) for parts in zip(*rows, strict=True))
        else:
            result = computed
        taken_ms = sum(found[key].ms if key in found else each_ms for key in keys) - each_ms * len(missing)
        for key in found:
            if key in self._passing:
                self._passing.move_to_end(key)
        self._saved_ms += taken_ms - overhead_ms - (time.perf_counter() - looked_up) * 1e3
        return result

    def _keep(self, key: bytes, kept: _Kept) -> None:
        limit = self.max_gb * 1e9
        if key in self._kept or kept.num_bytes > limit:
            return
        while self._num_bytes + kept.num_bytes > limit and self._passing:
            dropped, _ = self._passing.popitem(last=False)
            self._num_bytes -= self._kept.pop(dropped).num_bytes
        if self._num_bytes + kept.num_bytes > limit:
            return
        self._kept[key] = kept
        self._num_bytes += kept.num_bytes
        if not kept.lasts:
            self._passing[key] = None


def _by_sample(points: PointBatch) -> tuple[Tensor, ...]:
    """The rows of each sample."""
    return points.points.split(torch.bincount(points.sample, minlength=len(points.present)).tolist())


def _digest(name: str, rows: Tensor) -> bytes:
    """Of a part's name, and of the shape and every bit of its input.

    SHA-256, which processors of today have instructions for: twice as fast as BLAKE2 there.
    """
    digest = hashlib.sha256(f"{name}{tuple(rows.shape)}{rows.dtype}".encode(), usedforsecurity=False)
    digest.update(rows.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return digest.digest()[:_SKETCH]


def _of_views(features: ViewFeatures) -> tuple[Tensor, Tensor]:
    return features.context, features.depth_logits


def _of_samples(rows: ViewRows, place: Tensor) -> ViewRows:
    """The rows of some samples, which are renumbered by ``place``; -1 leaves a sample out."""
    kept = torch.nonzero(place[rows.sample] >= 0)[:, 0]
    return replace(rows.chosen(kept), sample=place[rows.sample[kept]])


def _poses(views: PosedViews) -> Tensor:
    """All numbers of each row's camera."""
    return torch.cat([views.image_from_camera.flatten(1), views.ego_from_camera.flatten(1)], dim=1)
