"""What several processes must find out together: if one of them cannot go on, the others stop too instead of waiting for it."""

from __future__ import annotations

from typing import Any

import torch
from accelerate.utils import DistributedType, gather_object


class OtherProcessError(RuntimeError):
    """Another process of the run cannot go on, so this one stops as well."""


def problems_of_all(accelerator: Any, problem: str | None) -> list[str]:
    """What each process has to complain about, in order of their numbers; empty if all are well.

    Every process must call it. While all are well it costs one number's exchange.
    """
    if accelerator.num_processes == 1:
        return [] if problem is None else [problem]
    bad = torch.tensor(int(problem is not None), device=accelerator.device)
    if not int(accelerator.reduce(bad, reduction="sum")):
        return []
    texts = gather_object([problem])
    return [text if len(texts) == 1 else f"process {rank}: {text}" for rank, text in enumerate(texts) if text is not None]


def raise_together(accelerator: Any, error: Exception | None) -> None:
    """Raise this process's own error, or one that tells of another's. Every process must call it.

    Raises:
        OtherProcessError: where only another process has an error.
    """
    problems = problems_of_all(accelerator, None if error is None else f"{type(error).__name__}: {error}")
    if error is not None:
        raise error
    if problems:
        raise OtherProcessError(f"the run stops because of {'; '.join(problems)}")


def check_sharding(args: Any, accelerator: Any) -> None:
    """accelerate ignores what it cannot do, and would replicate the model on every device instead."""
    if args.fsdp and accelerator.distributed_type != DistributedType.FSDP:
        raise ValueError(
            f"fsdp was asked for, but accelerate runs {accelerator.num_processes} process(es) on {accelerator.device.type} as "
            f"{accelerator.distributed_type.value}: it shards over several GPUs only, started with torchrun"
        )
