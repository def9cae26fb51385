"""Joules: read from the machine where it can tell, otherwise from a model that says so.

RAPL (Linux, ``/sys/class/powercap``) counts microjoules of a processor package and wraps around; NVML counts
millijoules of an NVIDIA board. Both see everything that runs there, not this process alone.
"""

import ctypes
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from sensors.rig import CAMERAS, CHANNELS, LIDAR, NUSCENES_RIG, RADARS, UNITS

POWERCAP = Path("/sys/class/powercap")


class RaplReader:
    """Joules of all processor packages since the first reading.

    Args:
        folder: where the kernel shows its counters.

    Raises:
        FileNotFoundError: no package counter is there, or it is not for this user to read.
    """

    def __init__(self, folder: str | Path = POWERCAP):
        self._zones = [zone for zone in sorted(Path(folder).glob("intel-rapl:*")) if zone.name.count(":") == 1]
        try:
            self._last = {zone: self._microjoules(zone) for zone in self._zones}
        except OSError as error:
            raise FileNotFoundError(f"expected readable energy counters in {folder}, got: {error}") from error
        if not self._zones:
            raise FileNotFoundError(f"expected energy counters intel-rapl:N in {folder}, found none; use the model")
        self._total = 0

    def joules(self) -> float:
        """Since construction. Read at least once per wrap-around (minutes under load)."""
        for zone in self._zones:
            now = self._microjoules(zone)
            passed = now - self._last[zone]
            if passed < 0:
                passed += int((zone / "max_energy_range_uj").read_text()) + 1
            self._last[zone], self._total = now, self._total + passed
        return self._total / 1e6

    @staticmethod
    def _microjoules(zone: Path) -> int:
        return int((zone / "energy_uj").read_text())


class NvmlReader:
    """Joules of one NVIDIA board since the first reading (Volta and later).

    Args:
        index: of the board, as ``nvidia-smi`` counts.
        library: libnvidia-ml, or something with its functions; None loads it.

    Raises:
        FileNotFoundError: there is no such library, board or counter.
    """

    def __init__(self, index: int = 0, library=None):
        self._library = _nvml() if library is None else library
        self._handle = ctypes.c_void_p()
        self._check(self._library.nvmlInit_v2(), "nvmlInit")
        self._check(self._library.nvmlDeviceGetHandleByIndex_v2(index, ctypes.byref(self._handle)), f"board {index}")
        self._first = self._millijoules()

    def joules(self) -> float:
        """Since construction."""
        return (self._millijoules() - self._first) / 1e3

    def _millijoules(self) -> int:
        value = ctypes.c_ulonglong()
        code = self._library.nvmlDeviceGetTotalEnergyConsumption(self._handle, ctypes.byref(value))
        self._check(code, "the energy counter")
        return value.value

    @staticmethod
    def _check(code: int, what: str) -> None:
        if code != 0:
            raise FileNotFoundError(f"expected NVML to give {what}, got error {code}; use the model of energy")


def _nvml():
    try:
        return ctypes.CDLL("libnvidia-ml.so.1")
    except OSError as error:
        raise FileNotFoundError(f"expected libnvidia-ml.so.1, got: {error}; use the model of energy") from error


@dataclass(frozen=True)
class EnergyModel:
    """Joules of one sample where nothing can be measured. Nominal: for comparing routes, not for a battery.

    energy = executed GFLOPs * joules per GFLOP + idle power * period + power of each sensor that was read * period

    Attributes:
        joules_per_gflop: of the device under load: watts at full load / sustained GFLOPs per second.
        idle_w: of the device, whatever runs.
        period_s: between two samples: 0.5 s for nuScenes' keyframes.
        channel_power_w: of each sensor; the rig's nominal values by default.
        sensors_switch_off: whether a unit that did not run was not powered either. Only a runner that reads no sensor
            in vain may claim it.
    """

    joules_per_gflop: float = 0.02
    idle_w: float = 0.0
    period_s: float = 0.5
    channel_power_w: Mapping[str, float] = field(
        default_factory=lambda: {name: spec.power_w for name, spec in NUSCENES_RIG.items()}
    )
    sensors_switch_off: bool = False

    def computing_j(self, gflops: float) -> float:
        return gflops * self.joules_per_gflop + self.idle_w * self.period_s

    def sensing_j(self, ran: Sequence[bool]) -> float:
        """Of all sensors, or of those whose unit ran if they switch off.

        Args:
            ran: for each of UNITS.
        """
        on = [channel for channel in CHANNELS if not self.sensors_switch_off or ran[unit_of(channel)]]
        return self.period_s * sum(self.channel_power_w[channel] for channel in on)

    def sample_j(self, gflops: float, ran: Sequence[bool]) -> float:
        """Computing and sensing."""
        return self.computing_j(gflops) + self.sensing_j(ran)


def unit_of(channel: str) -> int:
    """Index of the unit that a channel belongs to."""
    if channel in CAMERAS:
        return CAMERAS.index(channel)
    assert channel == LIDAR or channel in RADARS, channel
    return UNITS.index("LIDAR") if channel == LIDAR else UNITS.index("RADAR")


def energy_reader(device_type: str) -> NvmlReader | RaplReader | None:
    """The counter of what computes: NVML for ``cuda``, RAPL elsewhere; None where it cannot be read."""
    try:
        return NvmlReader() if device_type == "cuda" else RaplReader()
    except FileNotFoundError:
        return None
