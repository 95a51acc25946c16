"""The GPUs of this machine, as NVIDIA's management library (NVML) shows them, or declared ones that are none.

A declared (fake) GPU lets placement be tried without hardware. It is marked as such wherever it is shown, has an id
that no driver gives, and a machine that declares some reports no real one.
"""

from __future__ import annotations

import ctypes
import re
from collections.abc import Sequence
from typing import Any

from dataplane.config import ConfigError
from dataplane.protocol import FAKE_GPU, GpuDevice

_DRIVER_LIBRARY = "libnvidia-ml.so.1"
FREE_STEP = 256 * 1024 * 1024
"""Free memory is told in steps of this, or every heartbeat would tell it."""
FAKE_MOST = 64
_DECLARED = re.compile(r"([0-9]{1,3})x([0-9]{1,6})(Mi|Gi)\Z")
_UNITS = {"Mi": 1024**2, "Gi": 1024**3}


def fake_gpus(declared: str) -> tuple[GpuDevice, ...]:
    """Devices for ``4x80Gi`` (several kinds: ``2x80Gi,1x24Gi``). Raises ``ConfigError``."""
    devices: list[GpuDevice] = []
    for part in declared.split(","):
        found = _DECLARED.match(part.strip())
        count = int(found[1]) if found else 0
        if found is None or count < 1 or len(devices) + count > FAKE_MOST:
            raise ConfigError(
                f"{declared!r} declares no GPUs: write COUNTxMEMORY such as 4x80Gi, at most {FAKE_MOST} of them"
            )
        memory = int(found[2]) * _UNITS[found[3]]
        for _ in range(count):
            index = len(devices)
            devices.append(
                GpuDevice(
                    uuid=f"{FAKE_GPU}{index}",
                    index=index,
                    name=f"fake {found[2]}{found[3]}",
                    memory_bytes=memory,
                    memory_free_bytes=memory,
                    fake=True,
                )
            )
    return tuple(devices)


def find_gpus() -> tuple[tuple[GpuDevice, ...], str]:
    """What the driver shows now, and if that is nothing, why. Blocking; never raises.

    A GPU that is cut into MIG slices counts as its slices.
    """
    if absent := driver_absent():
        return (), absent
    # Only now: it costs 13 MB, and a node without a GPU never needs it.
    try:
        import pynvml
    except ImportError as error:
        return (), f"the package nvidia-ml-py is missing: {error}"
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError as error:
        return (), f"no NVIDIA driver answers: {error}"
    try:
        devices = [device for index in range(pynvml.nvmlDeviceGetCount()) for device in _devices(pynvml, index)]
    except pynvml.NVMLError as error:
        return (), f"the NVIDIA driver failed: {error}"
    finally:
        _shut_down(pynvml)
    return tuple(devices), "" if devices else "the NVIDIA driver shows no GPU"


def driver_absent() -> str:
    """Why no NVIDIA driver can answer, as far as its library says; "" if it may."""
    try:
        ctypes.CDLL(_DRIVER_LIBRARY)
    except OSError as error:
        return f"no NVIDIA driver answers: {error}"
    return ""


def told(devices: Sequence[GpuDevice]) -> list[GpuDevice]:
    """Devices as a heartbeat tells them: equal unless one came, went, or has notably more or less free memory."""
    return [
        GpuDevice(
            uuid=one.uuid,
            index=one.index,
            name=one.name,
            memory_bytes=one.memory_bytes,
            memory_free_bytes=one.memory_free_bytes // FREE_STEP * FREE_STEP,
            fake=one.fake,
        )
        for one in devices
    ]


def _devices(nvml: Any, index: int) -> list[GpuDevice]:
    handle = nvml.nvmlDeviceGetHandleByIndex(index)
    name = _text(nvml.nvmlDeviceGetName(handle))
    slices = _slices(nvml, handle)
    return [_device(nvml, one, index, name) for one in slices or [handle]]


def _slices(nvml: Any, handle: Any) -> list[Any]:
    """Handles of the MIG slices; none where the GPU is whole."""
    try:
        if nvml.nvmlDeviceGetMigMode(handle)[0] != nvml.NVML_DEVICE_MIG_ENABLE:
            return []
        most = nvml.nvmlDeviceGetMaxMigDeviceCount(handle)
    except nvml.NVMLError:  # a GPU that cannot be cut says so by an error
        return []
    found = []
    for number in range(most):
        try:
            found.append(nvml.nvmlDeviceGetMigDeviceHandleByIndex(handle, number))
        except nvml.NVMLError:  # places without a slice
            continue
    return found


def _device(nvml: Any, handle: Any, index: int, name: str) -> GpuDevice:
    memory = nvml.nvmlDeviceGetMemoryInfo(handle)
    return GpuDevice(
        uuid=_text(nvml.nvmlDeviceGetUUID(handle)),
        index=index,
        name=name,
        memory_bytes=int(memory.total),
        memory_free_bytes=int(memory.free),
    )


def _text(value: str | bytes) -> str:
    return value.decode(errors="replace") if isinstance(value, bytes) else value


def _shut_down(nvml: Any) -> None:
    try:
        nvml.nvmlShutdown()
    except nvml.NVMLError:
        return
