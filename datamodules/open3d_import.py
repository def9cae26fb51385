"""Open3D, made importable on machines that lack libusb."""

import ctypes
from types import ModuleType

_APT_LINE = "apt-get install -y libgl1 libx11-6 libgomp1"


def load_open3d() -> ModuleType:
    """The ``open3d`` module.

    Open3D links against ``libusb-1.0.so.0``, which slim systems lack. The PyPI package ``libusb-package`` ships a
    library of the same soname: loading it first satisfies the linker.

    Raises:
        ImportError: a system library that no PyPI package replaces (libGL, libX11, libgomp) is missing.
    """
    try:
        import open3d
    except ImportError as first:
        if "libusb" not in str(first):
            raise _explained(first) from first
        _load_libusb()
        try:
            import open3d
        except ImportError as second:
            raise _explained(second) from second
    return open3d


def _load_libusb() -> None:
    import libusb_package

    ctypes.CDLL(str(libusb_package.get_library_path()), mode=ctypes.RTLD_GLOBAL)


def _explained(error: ImportError) -> ImportError:
    return ImportError(f"expected Open3D to load its system libraries, got '{error}'; run: {_APT_LINE}")
