"""Which engine answers: what was asked for, or the fastest that this machine and the checkpoint allow."""

from __future__ import annotations

import logging
from importlib.util import find_spec
from pathlib import Path

from model.checkpoint.compiled import ENGINES
from model.checkpoint.folder import Checkpoint, load_checkpoint
from model.errors import CheckpointError, ConfigError
from model.inference.engines.engine import Engine, EngineName

log = logging.getLogger(__name__)

FASTEST_FIRST = (EngineName.OPENVINO_INT8, EngineName.OPENVINO_BF16, EngineName.OPENVINO_F32)

INTEGER_INSTRUCTIONS = frozenset({"avx512_vnni", "avx_vnni"})
"""One of these computes 8-bit products exactly; older instructions saturate, and the scores would be others."""

BFLOAT16_INSTRUCTIONS = frozenset({"avx512_bf16", "amx_bf16"})

GPU_DEVICES = ("/dev/nvidiactl", "/dev/dxg", "/dev/kfd")
"""Without one of these there is no GPU that PyTorch could use, and it is not imported to be asked."""

CPU_INFO = Path("/proc/cpuinfo")


def load_engine(folder: Path, *, engine: str, device: str, dtype: str) -> tuple[Checkpoint, Engine]:
    """Load a checkpoint with the calibration of its engine, and that engine.

    With `auto`, a named `dtype`, a GPU as `device`, or one that is there, mean PyTorch; otherwise it is the first of
    `FASTEST_FIRST` that the checkpoint carries and this machine can run; else PyTorch again, and one line says why.

    Raises `CheckpointError` or `ConfigError` with one line that names what is wrong.
    """
    name, slower = _named(engine), ""
    if name is None:
        name, slower = _chosen(folder, device, dtype)
    if name is EngineName.TORCH:
        loaded = _load_torch(folder, device, dtype)
        if slower:
            log.warning("PyTorch computes, which is slower on a CPU: %s", slower)
        return loaded
    if reason := _unfit(device, dtype) or unable(name):
        raise ConfigError(f"engine {name} cannot be used: {reason}")
    from model.inference.engines.openvino_engine import OpenVinoEngine  # noqa: PLC0415 - the package may be missing

    checkpoint = _with_attributes(load_checkpoint(folder, name))
    return checkpoint, OpenVinoEngine.load(checkpoint)


def _named(engine: str) -> EngineName | None:
    """Return the engine called so, None for `auto`."""
    if engine == "auto":
        return None
    try:
        return EngineName(engine)
    except ValueError:
        raise ConfigError(f"unknown engine {engine!r}; use auto, {', '.join(EngineName)}") from None


def _chosen(folder: Path, device: str, dtype: str) -> tuple[EngineName, str]:
    """Return the engine that `auto` means, and why it is not a faster one; empty where that needs no explanation."""
    if _unfit(device, dtype) or (device == "auto" and _has_gpu()):
        return EngineName.TORCH, ""
    if usable := usable_engines(folder):
        return usable[0], ""
    if not (carried := _carried(folder)):
        return EngineName.TORCH, f"{folder} carries no other engine (`cma-clip compile` makes one)"
    return EngineName.TORCH, "; ".join(f"{name}: {unable(name)}" for name in carried)


def usable_engines(folder: Path) -> list[EngineName]:
    """Return the engines that a checkpoint carries besides PyTorch and this machine can run, the fastest first."""
    return [name for name in _carried(folder) if not unable(name)]


def _carried(folder: Path) -> list[EngineName]:
    return [name for name in FASTEST_FIRST if (folder / ENGINES / name).is_dir()]


def _unfit(device: str, dtype: str) -> str:
    """Say why only PyTorch does what is asked for; empty where it is not so."""
    if dtype != "auto":
        return f"the number format {dtype} is PyTorch's"
    if device not in ("auto", "cpu"):
        return f"it computes on CPUs, not on {device}"
    return ""


def unable(name: EngineName) -> str:
    """Say why this machine cannot run an engine; empty where it can."""
    if name is EngineName.TORCH:
        return "" if find_spec("torch") else "the package torch is not installed"
    if find_spec("openvino") is None:
        return "the package openvino is not installed"
    needed = {
        EngineName.OPENVINO_INT8: INTEGER_INSTRUCTIONS,
        EngineName.OPENVINO_BF16: BFLOAT16_INSTRUCTIONS,
    }.get(name, frozenset())
    if needed and not needed & _instructions():
        return f"this processor has none of the instructions {', '.join(sorted(needed))}"
    return ""


def _instructions() -> frozenset[str]:
    """Return the names of the instruction sets that the kernel lists for this processor."""
    try:
        lines = CPU_INFO.read_text(encoding="utf-8").splitlines()
    except OSError:
        return frozenset()
    return frozenset(word for line in lines if line.startswith("flags") for word in line.split()[2:])


def _has_gpu() -> bool:
    if not find_spec("torch") or not any(Path(device).exists() for device in GPU_DEVICES):
        return False
    from model.device import pick_device  # noqa: PLC0415 - imports torch

    return pick_device("auto").type == "cuda"


def _load_torch(folder: Path, device: str, dtype: str) -> tuple[Checkpoint, Engine]:
    checkpoint = _with_attributes(load_checkpoint(folder))
    if reason := unable(EngineName.TORCH):
        raise ConfigError(f"engine torch cannot be used: {reason}; install the extra: pip install 'cma-clip[gpu]'")
    from model.inference.engines.torch_engine import TorchEngine  # noqa: PLC0415 - takes seconds

    return checkpoint, TorchEngine.load(checkpoint, device=device, dtype=dtype)


def _with_attributes(checkpoint: Checkpoint) -> Checkpoint:
    if not checkpoint.tasks:
        raise CheckpointError(f"{checkpoint.folder} holds pre-trained towers without attributes; train on it first")
    return checkpoint
