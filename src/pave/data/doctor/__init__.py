"""Looks for defects in samples and their files before anything is trained on them."""

from pave.data.doctor.defects import DEFECTS, SEVERITIES, Defect
from pave.data.doctor.examine import Cleaned, examine, write_clean
from pave.data.doctor.findings import Finding, Report, Split
from pave.data.doctor.setup import Setup

__all__ = ["DEFECTS", "SEVERITIES", "Cleaned", "Defect", "Finding", "Report", "Setup", "Split", "examine", "write_clean"]
