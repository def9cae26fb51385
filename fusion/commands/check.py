"""dynfusion check [libraries=report|install]

Says whether this machine has what dynfusion needs: Python, torch, a device, the devkit, Open3D with its libraries.
With libraries=install, missing system libraries of Open3D are installed by apt where this user may do that.
"""

import os
import platform
import shutil
import subprocess
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version

from fusion.commands.compose import parse_options

_APT_PACKAGES = ("libgl1", "libx11-6", "libgomp1")


@dataclass
class Options:
    libraries: str = "report"


def run(arguments: list[str]) -> int:
    options = parse_options(arguments, Options)
    if options.libraries not in ("report", "install"):
        raise ValueError(f"expected libraries=report or libraries=install, got '{options.libraries}'")
    problem = _open3d_problem()
    if problem and options.libraries == "install" and _install_libraries():
        problem = _open3d_problem()
    _print_versions(problem)
    return 1 if problem else 0


def _open3d_problem() -> str | None:
    """None where Open3D imports, else why not. In a process of its own: a failed import leaves half a module behind."""
    code = "from datamodules.open3d_import import load_open3d; load_open3d()"
    import sys

    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    return None if done.returncode == 0 else done.stderr.strip().splitlines()[-1]


def _install_libraries() -> bool:
    """Whether apt could be run: as root, or by sudo without a password."""
    if shutil.which("apt-get") is None:
        return False
    prefix = [] if os.geteuid() == 0 else ["sudo", "-n"]
    if prefix and shutil.which("sudo") is None:
        return False
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    for command in (["update", "-qq"], ["install", "-y", "-qq", *_APT_PACKAGES]):
        if subprocess.run([*prefix, "apt-get", *command], env=environment, check=False).returncode:
            return False
    return True


def _print_versions(open3d_problem: str | None) -> None:
    import torch
    from rich.console import Console
    from rich.table import Table

    table = Table(title="dynfusion on this machine", show_header=False)
    table.add_row("python", platform.python_version())
    for package in ("torch", "torchvision", "timm", "pytorch-lightning", "nuscenes-devkit", "numpy"):
        try:
            table.add_row(package, version(package))
        except PackageNotFoundError:
            table.add_row(package, "[yellow]not installed")
    table.add_row("open3d", f"[red]{open3d_problem}" if open3d_problem else version("open3d"))
    device = torch.cuda.get_device_name(0) if torch.cuda.is_available() else f"CPU, {os.cpu_count()} cores"
    table.add_row("device", device)
    Console().print(table)
