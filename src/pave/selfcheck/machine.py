"""What this machine can do: devices, number formats, attention kernels, codecs, free memory and disk, versions of what matters.

Everything is tried, not looked up in a list of what should work. Nothing here names a user, a path or a host.
"""

from __future__ import annotations

import os
import platform
import shutil
import tempfile
import warnings
from importlib import metadata
from typing import Any

import psutil
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

import pave
from pave.data.media.abilities import describe_codecs
from pave.selfcheck.placeholders import without_paths
from pave.utils.threads import free_cores

DTYPES = ("float32", "bfloat16", "float16")
PACKAGES = (
    *("torch", "torchvision", "transformers", "peft", "accelerate", "safetensors", "huggingface-hub", "tokenizers"),
    *("av", "numpy", "pillow", "pydantic", "torchcodec", "bitsandbytes", "torchao", "flash-attn", "deepspeed", "timm"),
)
"""Those that change what a run computes, or whether it runs."""
VARIABLES = (
    "CUDA_VISIBLE_DEVICES",
    "OMP_NUM_THREADS",
    "MKL_NUM_THREADS",
    "ACCELERATE_USE_CPU",
    "PAVE_DECODER",
    "HF_HUB_OFFLINE",
)
KERNELS = {
    "math": SDPBackend.MATH,
    "flash": SDPBackend.FLASH_ATTENTION,
    "memory-efficient": SDPBackend.EFFICIENT_ATTENTION,
    "cudnn": SDPBackend.CUDNN_ATTENTION,
}
"""Of ``torch.nn.functional.scaled_dot_product_attention``, which every base uses by default."""
_TOLERANCE = {"float32": 1e-2, "bfloat16": 5e-2, "float16": 1e-2}
"""Of the largest value. That of float32 leaves room for TensorFloat-32."""


def devices() -> list[torch.device]:
    """The CPU, and every accelerator that torch sees."""
    accelerator = torch.accelerator.current_accelerator()
    count = torch.accelerator.device_count() if accelerator is not None and torch.accelerator.is_available() else 0
    found = [torch.device(accelerator.type, index) for index in range(count)] if accelerator is not None else []
    return [torch.device("cpu"), *found]


def usable_device(name: str) -> torch.device:
    """A device by its name.

    Raises:
        ValueError: if torch cannot put anything there.
    """
    try:
        return torch.empty(0, device=name).device
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"--device {name}: it cannot be used: {str(error).splitlines()[0]}") from None


def describe_machine(chosen: list[torch.device]) -> dict[str, Any]:
    """Facts, for ``--json`` and for people; memory and disk in bytes, None for a package that is not installed."""
    memory, codecs = psutil.virtual_memory(), describe_codecs()
    return {
        "pave": pave.__version__,
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "cores": {"all": os.cpu_count() or 1, "free": free_cores(), "threads": torch.get_num_threads()},
        "memory": {"all": memory.total, "free": memory.available},
        "disk": {"here": shutil.disk_usage(os.curdir).free, "temporary": shutil.disk_usage(tempfile.gettempdir()).free},
        "versions": {name: _version(name) for name in PACKAGES} | {"torch": torch.__version__},  # with its build: +cpu, +cu130
        "cuda": torch.version.cuda,
        "variables": {name: os.environ[name] for name in VARIABLES if name in os.environ},
        "codecs": codecs | {"torchcodec": without_paths(codecs["torchcodec"])},
        "devices": {str(device): describe_device(device) for device in chosen},
    }


def describe_device(device: torch.device) -> dict[str, Any]:
    """Name, memory in bytes where the device says it, number formats and attention kernels that compute what the CPU computes."""
    facts: dict[str, Any] = {"name": platform.processor() or platform.machine() if device.type == "cpu" else device.type}
    if device.type in ("cuda", "xpu"):
        module = torch.get_device_module(device)
        free, total = module.mem_get_info(device)
        facts |= {"name": module.get_device_name(device), "memory": {"all": total, "free": free}}
    if device.type == "cuda":
        facts["capability"] = ".".join(map(str, torch.cuda.get_device_capability(device)))
    facts["dtypes"] = {name: _tried(_multiply, device, name) for name in DTYPES}
    facts["attention"] = {
        kernel: {name: _tried(_attend, device, name, backend) for name in DTYPES} for kernel, backend in KERNELS.items()
    }
    return facts


def _tried(work: Any, device: torch.device, dtype: str, *more: Any) -> str:
    """ "yes", or what went wrong, in a sentence."""
    try:
        with warnings.catch_warnings():  # of kernels that say at length why they are not available
            warnings.simplefilter("ignore")
            found, wanted = work(device, dtype, *more)
    except (RuntimeError, NotImplementedError, TypeError, ValueError) as error:
        return " ".join(without_paths(str(error)).split())[:200]
    off = difference(found, wanted)
    return "yes" if off <= _TOLERANCE[dtype] else f"off by {off:.2g} of the largest value"


def _multiply(device: torch.device, dtype: str) -> tuple[Tensor, Tensor]:
    """A linear layer and its gradient here, and in double precision."""
    weight, rows = (_numbers(seed, (32, 32)) for seed in (0, 1))
    results = []
    for kind, place in ((getattr(torch, dtype), device), (torch.float64, torch.device("cpu"))):
        w = weight.to(place, kind).requires_grad_()
        out = F.linear(rows.to(place, kind), w)
        out.square().mean().backward()
        assert w.grad is not None
        results.append(torch.cat([out.detach(), 32 * w.grad]).to("cpu", torch.float64))
    return results[0], results[1]


def _attend(device: torch.device, dtype: str, backend: SDPBackend) -> tuple[Tensor, Tensor]:
    """Causal attention here by one kernel, and by the plain formula in double precision."""
    query_BHSD, key_BHSD, value_BHSD = (_numbers(seed, (2, 4, 16, 64)) for seed in range(3))
    query, key, value = (x.to(device, getattr(torch, dtype)) for x in (query_BHSD, key_BHSD, value_BHSD))
    with sdpa_kernel(backend):
        found = F.scaled_dot_product_attention(query, key, value, is_causal=True)
    scores_BHST = query_BHSD @ key_BHSD.transpose(-1, -2) / 64**0.5
    later = torch.ones(16, 16, dtype=torch.bool).triu(1)
    return found.to("cpu", torch.float64), scores_BHST.masked_fill(later, float("-inf")).softmax(-1) @ value_BHSD


def _numbers(seed: int, shape: tuple[int, ...]) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def difference(found: Tensor, wanted: Tensor) -> float:
    """The largest difference as a share of the largest wanted value; infinite where anything is not finite."""
    off = float((found - wanted).abs().max() / wanted.abs().max())
    return off if off == off else float("inf")


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None
