"""Which device, number format and number of threads to compute with."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from model.errors import ConfigError
from model.threads import settle_threads

DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


def pick_device(name: str) -> torch.device:
    """Return the device called `name`; `auto` is the GPU where there is one, else the CPU.

    Raises `ConfigError` for a device that this machine does not have.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ConfigError(f"unknown device {name!r}; use auto, cpu, cuda or cuda:N") from error
    if device.type not in ("cpu", "cuda"):
        raise ConfigError(f"device {name!r} is not supported; use auto, cpu, cuda or cuda:N")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ConfigError(f"device {name!r} is not there; this machine has {torch.cuda.device_count()} GPUs")
    return device


def use_threads(wanted: int = 0) -> int:
    """Let PyTorch compute with `thread_count(wanted)` threads from now on, and return that number."""
    threads = settle_threads(wanted)
    torch.set_num_threads(threads)
    if torch.get_num_interop_threads() != 1:  # can be set once; nothing here runs operators beside one another
        torch.set_num_interop_threads(1)
    return threads


def serving_dtype(name: str, device: torch.device) -> torch.dtype:
    """Return the towers' number format for serving.

    `auto` is float32 on a CPU, since half precision rounds differently from batch size to batch size, and
    float16 on a GPU: three bits more than bfloat16, and CLIP's towers stay far inside its range.
    Raises `ConfigError` for an unknown name.
    """
    if name == "auto":
        return torch.float16 if device.type == "cuda" else torch.float32
    if name not in DTYPES:
        raise ConfigError(f"unknown dtype {name!r}; use auto, {', '.join(DTYPES)}")
    return DTYPES[name]


def training_dtype(device: torch.device, network: nn.Module | None = None) -> torch.dtype:
    """Return bfloat16 where the device multiplies it natively, else float32.

    A network with depthwise convolutions is trained in float32 on CPUs: PyTorch computes them more slowly in bfloat16
    there (EfficientNet-Lite0 at 128 x 96, forward and backward on one core: 26 images a second, against 42).
    """
    if device.type == "cuda":
        native = torch.cuda.is_bf16_supported(including_emulation=False)
    elif network is not None and any(map(_is_depthwise, network.modules())):
        native = False
    else:
        # Emulated on other CPUs, a hundred times slower than float32.
        native = torch.cpu._is_amx_tile_supported() or torch.cpu._is_avx512_bf16_supported()
    return torch.bfloat16 if native else torch.float32


def _is_depthwise(module: nn.Module) -> bool:
    return isinstance(module, nn.Conv2d) and module.groups > 1


def training_attention(device: torch.device) -> contextlib.AbstractContextManager[None]:
    """On a CPU, choose the plain attention, whose backward is twice as fast there.

    The backward pass has to be inside as well where it computes parts of the forward pass again.
    """
    return sdpa_kernel(SDPBackend.MATH) if device.type == "cpu" else contextlib.nullcontext()


@contextlib.contextmanager
def training_precision(device: torch.device, network: nn.Module | None = None) -> Iterator[None]:
    """Autocast to `training_dtype`, with `training_attention`. Weights, gradients and the optimiser stay in float32."""
    dtype = training_dtype(device, network)
    with torch.autocast(device.type, dtype, enabled=dtype is not torch.float32), training_attention(device):
        yield
