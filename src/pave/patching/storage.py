"""How the tensors of a patch lie in its files: as they are, or matrices in blocks of 8-bit or 4-bit integers.

A matrix is read row by row and cut into blocks of 64 elements (the last one may be shorter). A block is stored as integers and one
scale, its largest magnitude over 127 or 7; an element is its integer times the scale of its block. Vectors (biases, norms) stay as
they are: they are few, and a patch answers to them strongly. docs/patch_format.md describes the layout.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Literal

import torch
from torch import Tensor

FusionStorage = Literal["plain", "8bit", "4bit"]
BLOCK = 64
"""Elements that share a scale."""
CODES, SCALES, SHAPE = ".codes", ".scales", ".shape"
_TOP = {"8bit": 127, "4bit": 7}
"""The largest integer of a block."""
_PLAIN = (torch.float32, torch.bfloat16, torch.float16)


def to_storage(tensors: Mapping[str, Tensor], dtype: torch.dtype) -> dict[str, Tensor]:
    """The tensors as they are stored plainly; one that is not finite is refused by name."""
    stored = {}
    for key, value in tensors.items():
        cast = whole(value.detach()).to("cpu", torch.float32 if is_exact(key) else dtype).contiguous()
        if not bool(torch.isfinite(cast).all()):
            raise ValueError(f"refusing to save the patch: {key} holds NaN or infinity in {str(dtype).removeprefix('torch.')}")
        stored[key] = cast
    return stored


def whole(tensor: Tensor) -> Tensor:
    """A tensor that FSDP2 sharded, gathered from all processes; any other as it is."""
    sharded: Any = tensor
    return sharded.full_tensor() if hasattr(sharded, "full_tensor") else tensor


def is_exact(key: str) -> bool:
    """True for tensors that are always stored in float32. Measured means and deviations of features: a mean far from zero would not
    survive 16 bits. DoRA's lengths: they multiply the whole weight, and rounding them would outweigh the update."""
    return ".standardize." in key or key.endswith("lora_magnitude_vector")


def pack(tensors: Mapping[str, Tensor], storage: FusionStorage, dtype: torch.dtype) -> dict[str, Tensor]:
    """Tensors of the fusion modules in the layout of ``storage``.

    Args:
        tensors: by name.
        storage: plain, 8bit or 4bit.
        dtype: of what is not packed.

    Raises:
        ValueError: if a tensor is not finite.
    """
    stored = to_storage(tensors, torch.float32 if storage != "plain" else dtype)
    if storage == "plain":
        return stored
    out: dict[str, Tensor] = {}
    for key, value in stored.items():
        if _is_packed(key, value.shape):
            out |= {key + suffix: part for suffix, part in _pack_matrix(value, storage).items()}
        else:
            out |= to_storage({key: value}, dtype)
    return out


def _is_packed(key: str, shape: torch.Size) -> bool:
    return len(shape) >= 2 and not is_exact(key)


def _pack_matrix(matrix: Tensor, storage: FusionStorage) -> dict[str, Tensor]:
    top = _TOP[storage]
    blocks_NW = _blocks(matrix.flatten())
    scales_N = (blocks_NW.abs().amax(dim=1) / top).bfloat16()
    divisor = torch.where(scales_N == 0, 1.0, scales_N.float())[:, None]
    codes = (blocks_NW / divisor).round().clamp(-top, top).to(torch.int8).flatten()[: matrix.numel()]
    if storage == "8bit":
        stored = codes.view(matrix.shape)
    else:
        nibbles = torch.nn.functional.pad(codes + 8, (0, len(codes) % 2), value=8).to(torch.uint8)
        stored = nibbles[0::2] | (nibbles[1::2] << 4)
    return {CODES: stored.contiguous(), SCALES: scales_N, SHAPE: torch.tensor(matrix.shape)}


def _blocks(flat: Tensor) -> Tensor:
    """Rows of 64 elements, zeros behind the last."""
    return torch.nn.functional.pad(flat, (0, -len(flat) % BLOCK)).view(-1, BLOCK)


def unpack(stored: Mapping[str, Tensor], storage: FusionStorage, where: str) -> dict[str, Tensor]:
    """The inverse of ``pack``; packed matrices come out in float32.

    Raises:
        ValueError: naming ``where`` and the tensor whose parts are missing, of another type or size, or hold impossible values.
    """
    names = [key.removesuffix(CODES) for key in stored if key.endswith(CODES)] if storage != "plain" else []
    parts = {name + suffix for name in names for suffix in (CODES, SCALES, SHAPE)}
    missing = sorted(parts.difference(stored))
    if missing:
        raise ValueError(f"{where}: {missing[0]} is missing, but the patch stores its matrices in {storage}")
    plain = {key: value for key, value in stored.items() if key not in parts}
    _check_plain(plain, where)
    for name in names:
        if name in plain:
            raise ValueError(f"{where}: {name} is stored twice, plainly and in {storage}")
        codes, scales_N, shape = (stored[name + suffix] for suffix in (CODES, SCALES, SHAPE))
        plain[name] = _unpack_matrix(codes, scales_N, shape, storage, f"{where}: {name}")
    return plain


def _check_plain(tensors: Mapping[str, Tensor], where: str) -> None:
    for key, value in tensors.items():
        if value.dtype not in _PLAIN:
            kind = str(value.dtype).removeprefix("torch.")
            raise ValueError(f"{where}: {key} is stored as {kind}; a patch holds float32, bfloat16 or float16")
        if not bool(torch.isfinite(value).all()):
            raise ValueError(f"{where}: {key} holds NaN or infinity")


def _unpack_matrix(codes: Tensor, scales_N: Tensor, shape: Tensor, storage: FusionStorage, where: str) -> Tensor:
    top = _TOP[storage]
    if shape.dtype != torch.int64 or shape.ndim != 1 or len(shape) < 2 or not bool((shape > 0).all()):
        raise ValueError(f"{where}{SHAPE} is no shape of a matrix; copy or download the file again")
    size = tuple(shape.tolist())
    count = math.prod(size)
    wanted = (torch.int8, size) if storage == "8bit" else (torch.uint8, (-(-count // 2),))
    if (codes.dtype, tuple(codes.shape)) != wanted:
        raise ValueError(
            f"{where}{CODES} is {_described(codes)}, but a matrix of shape {size} in {storage} needs "
            f"{str(wanted[0]).removeprefix('torch.')} of shape {wanted[1]}"
        )
    if scales_N.dtype != torch.bfloat16 or tuple(scales_N.shape) != (-(-count // BLOCK),):
        raise ValueError(
            f"{where}{SCALES} is {_described(scales_N)}, but {count} elements need bfloat16 of shape ({-(-count // BLOCK)},)"
        )
    if not bool((torch.isfinite(scales_N) & (scales_N >= 0)).all()):
        raise ValueError(f"{where}{SCALES} holds a scale that is negative, NaN or infinite; copy or download the file again")
    if storage == "4bit":
        nibbles = torch.stack([codes & 15, codes >> 4], dim=1).flatten()
        if count % 2 and int(nibbles[-1]) != 8:
            raise ValueError(f"{where}{CODES} holds more than the matrix has elements; copy or download the file again")
        codes = nibbles[:count].to(torch.int8) - 8
    if bool((codes < -top).any()):
        raise ValueError(
            f"{where}{CODES} holds an integer below {-top}, which is never written; copy or download the file again"
        )
    values = _blocks(codes.flatten().float()) * scales_N.float()[:, None]
    return values.flatten()[:count].view(size)


def _described(tensor: Tensor) -> str:
    return f"{str(tensor.dtype).removeprefix('torch.')} of shape {tuple(tensor.shape)}"


def stored_bytes(tensors: Mapping[str, Tensor], storage: FusionStorage, dtype: torch.dtype) -> int:
    """Bytes that ``pack`` of tensors of these names and shapes takes, without the file's header; they may be on the meta device."""
    total = 0
    for key, value in tensors.items():
        count = value.numel()
        if storage == "plain" or not _is_packed(key, value.shape):
            total += count * (torch.float32 if is_exact(key) else dtype).itemsize
        else:
            codes = count if storage == "8bit" else -(-count // 2)
            total += codes + 2 * -(-count // BLOCK) + 8 * value.ndim
    return total


def tensor_bytes(stored: Mapping[str, Tensor]) -> int:
    """Bytes of tensors as they lie in a file."""
    return sum(value.numel() * value.element_size() for value in stored.values())


def parameter_count(stored: Mapping[str, Tensor]) -> int:
    """Elements of the tensors that ``stored`` stands for."""
    total = 0
    for key, value in stored.items():
        if key.endswith(SHAPE):
            total += math.prod(value.tolist())
        elif not key.endswith((CODES, SCALES)):
            total += value.numel()
    return total
