"""GPUs of a node: what is declared, what a driver shows, and who holds which."""

from __future__ import annotations

import sys
from types import SimpleNamespace
from typing import Any

import pytest

from controlplane.nodes.devices import DeviceLedger
from dataplane import gpus
from dataplane.config import ConfigError
from dataplane.gpus import FREE_STEP, fake_gpus, find_gpus, told
from dataplane.protocol import FAKE_GPU, GpuDevice

GIB = 1024**3


def device(uuid: str, memory: int = GIB, free: int = GIB) -> GpuDevice:
    return GpuDevice(uuid=uuid, index=0, name="n", memory_bytes=memory, memory_free_bytes=free)


def test_declared_gpus_are_marked_and_named_as_no_driver_would() -> None:
    devices = fake_gpus("2x80Gi, 1x512Mi")
    assert [one.uuid for one in devices] == [f"{FAKE_GPU}{index}" for index in range(3)]
    assert [one.memory_bytes for one in devices] == [80 * GIB, 80 * GIB, GIB // 2]
    assert all(one.fake and one.name.startswith("fake ") for one in devices)


@pytest.mark.parametrize("text", ["", "4", "x80Gi", "0x80Gi", "65x1Gi", "64x1Gi,1x1Gi", "4x80", "4x80Gi;", "-1x8Gi"])
def test_what_declares_no_gpus_is_refused_with_an_example(text: str) -> None:
    with pytest.raises(ConfigError, match="COUNTxMEMORY such as 4x80Gi"):
        fake_gpus(text)


class Library:
    """NVML with one whole GPU and one in two slices; its answers are those of the real library, which is not here."""

    NVML_DEVICE_MIG_ENABLE = 1

    class NVMLError(Exception):
        pass

    def __init__(self, fails: str = "") -> None:
        self.fails = fails
        self.open = 0

    def nvmlInit(self) -> None:
        if self.fails == "init":
            raise self.NVMLError("Driver Not Loaded")
        self.open += 1

    def nvmlShutdown(self) -> None:
        self.open -= 1

    def nvmlDeviceGetCount(self) -> int:
        return 0 if self.fails == "none" else 2

    def nvmlDeviceGetHandleByIndex(self, index: int) -> Any:
        return SimpleNamespace(uuid=f"GPU-{index}".encode(), total=80 * GIB, mig=index)

    def nvmlDeviceGetName(self, _handle: Any) -> str:
        return "H100"

    def nvmlDeviceGetMigMode(self, handle: Any) -> list[int]:
        if not handle.mig:
            raise self.NVMLError("Not Supported")
        return [1, 1]

    def nvmlDeviceGetMaxMigDeviceCount(self, _handle: Any) -> int:
        return 7

    def nvmlDeviceGetMigDeviceHandleByIndex(self, _handle: Any, number: int) -> Any:
        if number not in (0, 3):
            raise self.NVMLError("Not Found")
        return SimpleNamespace(uuid=f"MIG-{number}", total=10 * GIB)

    def nvmlDeviceGetUUID(self, handle: Any) -> Any:
        return handle.uuid

    def nvmlDeviceGetMemoryInfo(self, handle: Any) -> Any:
        if self.fails == "memory":
            raise self.NVMLError("GPU is lost")
        return SimpleNamespace(total=handle.total, free=handle.total // 2)


def test_whole_gpus_and_slices_are_reported_as_the_driver_shows_them(monkeypatch: pytest.MonkeyPatch) -> None:
    library = Library()
    monkeypatch.setitem(sys.modules, "pynvml", library)
    monkeypatch.setattr(gpus, "driver_absent", lambda: "")
    devices, why = find_gpus()
    assert [(one.uuid, one.index, one.memory_bytes) for one in devices] == [
        ("GPU-0", 0, 80 * GIB), ("MIG-0", 1, 10 * GIB), ("MIG-3", 1, 10 * GIB),
    ]  # fmt: skip
    assert (why, library.open) == ("", 0)
    assert not any(one.fake for one in devices)


@pytest.mark.parametrize(
    ("fails", "why"),
    [
        ("init", "no NVIDIA driver answers: Driver Not Loaded"),
        ("none", "the NVIDIA driver shows no GPU"),
        ("memory", "the NVIDIA driver failed: GPU is lost"),
    ],
)
def test_no_gpu_comes_with_its_reason(fails: str, why: str, monkeypatch: pytest.MonkeyPatch) -> None:
    library = Library(fails)
    monkeypatch.setitem(sys.modules, "pynvml", library)
    monkeypatch.setattr(gpus, "driver_absent", lambda: "")
    assert find_gpus() == ((), why)
    assert library.open == 0


def test_without_the_drivers_own_library_nothing_else_is_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpus, "_DRIVER_LIBRARY", "libno-such-driver.so.1")
    monkeypatch.setitem(sys.modules, "pynvml", None)  # an import of it would raise
    devices, why = find_gpus()
    assert devices == () and why.startswith("no NVIDIA driver answers: libno-such-driver.so.1")


def test_a_little_less_free_memory_is_nothing_to_tell() -> None:
    before = told([device("a", free=3 * FREE_STEP)])
    assert before == told([device("a", free=4 * FREE_STEP - 1)])
    assert before != told([device("a", free=4 * FREE_STEP)])


def test_a_device_has_one_holder() -> None:
    ledger = DeviceLedger()
    assert ledger.hold("att_1", ["a", "b"])
    assert ledger.hold("att_1", ["a", "b"])
    assert not ledger.hold("att_2", ["c", "b"])
    assert ledger.holder("c") is None
    assert ledger.release("att_1")
    assert not ledger.release("att_1")
    assert ledger.hold("att_2", ["c", "b"])


def test_a_model_server_takes_the_smallest_that_will_do_or_none() -> None:
    ledger, devices = DeviceLedger(), [device("a", 80 * GIB), device("b", 24 * GIB), device("c", 24 * GIB)]
    assert ledger.take("model/1", devices, 1) == ("b",)
    assert ledger.take("model/2", devices, 2, 40 * GIB) is None
    assert ledger.take("model/2", devices, 1, 40 * GIB) == ("a",)
    assert ledger.held_by("model/2") == ("a",)
    assert ledger.take("model/3", devices, 2) is None


def test_devices_of_a_lost_node_stay_with_their_attempts_until_the_node_says_that_they_ended() -> None:
    ledger = DeviceLedger()
    ledger.hold("att_1", ["a"])
    ledger.hold("att_2", ["b"])
    ledger.hold("model/1", ["c"])
    ledger.leave(["att_1", "att_2"])
    assert not ledger.left({"att_1", "att_2"})
    assert ledger.left({"att_1"})
    assert (ledger.holder("a"), ledger.holder("b"), ledger.holder("c")) == ("att_1", None, "model/1")
    assert ledger.left(())
    assert (ledger.holder("a"), ledger.holder("c")) == (None, "model/1")
