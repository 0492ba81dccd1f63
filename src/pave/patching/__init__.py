"""Joins fusion, a base model and LoRA: attach, detach, save and load patches."""

from __future__ import annotations

from pave.patching.checkpoint import (
    load_patch,
    load_tensors,
    push_patch_to_hub,
    resolve_patch,
    save_patch,
)
from pave.patching.continuing import check_continues, continue_patch, patch_digest
from pave.patching.fingerprint import BaseFingerprint, fingerprint
from pave.patching.model import (
    attach_patch,
    detach_patch,
    is_patched,
    patch_name,
    patch_parameter_groups,
    patch_parameters,
    patch_slot,
)
from pave.patching.record import PatchRecord, read_record
from pave.patching.signing import sign_patch

__all__ = [
    "BaseFingerprint",
    "PatchRecord",
    "attach_patch",
    "check_continues",
    "continue_patch",
    "detach_patch",
    "fingerprint",
    "is_patched",
    "load_patch",
    "load_tensors",
    "patch_digest",
    "patch_name",
    "patch_parameter_groups",
    "patch_parameters",
    "patch_slot",
    "push_patch_to_hub",
    "read_record",
    "resolve_patch",
    "save_patch",
    "sign_patch",
]
