"""Open3D comes up without manual steps, and says what is missing where it cannot."""

import builtins
import sys

import pytest

from datamodules import open3d_import
from datamodules.open3d_import import load_open3d


def test_open3d_casts_a_ray():
    open3d = load_open3d()
    scene = open3d.t.geometry.RaycastingScene(nthreads=1)
    vertices = open3d.core.Tensor([[0, -1, -1], [0, 1, -1], [0, 0, 1]], dtype=open3d.core.float32)
    scene.add_triangles(vertices, open3d.core.Tensor([[0, 1, 2]], dtype=open3d.core.uint32))
    rays = open3d.core.Tensor([[-3, 0, 0, 1, 0, 0]], dtype=open3d.core.float32)
    assert scene.cast_rays(rays)["t_hit"].numpy()[0] == pytest.approx(3.0)


@pytest.mark.parametrize("library", ["libGL.so.1", "libX11.so.6", "libgomp.so.1"])
def test_a_missing_system_library_names_the_apt_line(monkeypatch, library):
    real = builtins.__import__

    def broken(name, *args, **kwargs):
        if name == "open3d":
            raise ImportError(f"{library}: cannot open shared object file: No such file or directory")
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", broken)
    with pytest.raises(ImportError, match="apt-get install") as error:
        load_open3d()
    assert library in str(error.value)
    assert "\n" not in str(error.value)


def test_a_missing_libusb_is_loaded_and_tried_again(monkeypatch):
    real, calls = builtins.__import__, []

    def broken_once(name, *args, **kwargs):
        if name == "open3d":
            calls.append(name)
            if len(calls) == 1:
                raise ImportError("libusb-1.0.so.0: cannot open shared object file: No such file or directory")
        return real(name, *args, **kwargs)

    loaded = []
    load_open3d()
    monkeypatch.setattr(builtins, "__import__", broken_once)
    monkeypatch.setattr(open3d_import, "_load_libusb", lambda: loaded.append(True))
    assert load_open3d() is sys.modules["open3d"]
    assert loaded == [True]
    assert len(calls) == 2
