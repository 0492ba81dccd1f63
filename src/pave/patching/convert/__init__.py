"""From and to what others released: the authors' patches and bases, plain PEFT folders, golden numbers.

docs/authors_checkpoints.md says how they are used, what is assumed, and what differs.
"""

from __future__ import annotations

from pave.patching.convert.base import ConvertedBase, convert_base, is_reference_base
from pave.patching.convert.export import export_patch
from pave.patching.convert.golden import run_golden
from pave.patching.convert.reference_fusion import ReferenceFusion, fusion_from_reference
from pave.patching.convert.reference_patch import ImportedPatch, import_patch

__all__ = [
    "ConvertedBase",
    "ImportedPatch",
    "ReferenceFusion",
    "convert_base",
    "export_patch",
    "fusion_from_reference",
    "import_patch",
    "is_reference_base",
    "run_golden",
]
