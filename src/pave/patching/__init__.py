"""Joins fusion, a base model and LoRA: attach, detach, save and load patches."""

from __future__ import annotations

from pave.patching.attach import (
    attach_patch,
    detach_patch,
    unload_patch,
)
from pave.patching.checkpoint import (
    load_tensors,
    push_patch_to_hub,
    resolve_patch,
    save_patch,
)
from pave.patching.continuing import check_continues, continue_patch, patch_digest
from pave.patching.fingerprint import BaseFingerprint, fingerprint
from pave.patching.fuse import Fused, fuse
from pave.patching.load import load_patch
from pave.patching.lookup import (
    is_patched,
    patch_name,
    patch_names,
    patch_parameter_groups,
    patch_parameters,
    patch_slot,
)
from pave.patching.record import PatchRecord, read_record
from pave.patching.rows import InSameRows, Plan, Use, lora_rows
from pave.patching.signing import sign_patch
from pave.video_llms.encode import EncodedVideo, encode

__all__ = [
    "BaseFingerprint",
    "EncodedVideo",
    "Fused",
    "InSameRows",
    "PatchRecord",
    "Plan",
    "Use",
    "attach_patch",
    "check_continues",
    "continue_patch",
    "detach_patch",
    "encode",
    "fingerprint",
    "fuse",
    "is_patched",
    "load_patch",
    "load_tensors",
    "lora_rows",
    "patch_digest",
    "patch_name",
    "patch_names",
    "patch_parameter_groups",
    "patch_parameters",
    "patch_slot",
    "push_patch_to_hub",
    "read_record",
    "resolve_patch",
    "save_patch",
    "sign_patch",
    "unload_patch",
]
