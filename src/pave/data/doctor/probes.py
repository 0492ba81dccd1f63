"""Whether the features of a clean file's channels hold its answers."""

from __future__ import annotations

from pave.data.answer_probe import ProbeScore, probe_samples
from pave.data.dataset import PatchDataset
from pave.data.doctor.findings import Report
from pave.data.doctor.setup import Setup
from pave.side_channels import build_encoder
from pave.utils.console import track


def probe_report(report: Report, setup: Setup, *, progress: bool = True) -> list[ProbeScore]:
    """Probe the channels on the samples of the first file that have no error; nothing where files were only probed or no channel is
    known.

    Args:
        report: of ``examine``.
        setup: that it was made with.
        progress: show how far it is.
    """
    if setup.quick or not setup.channels:
        return []
    split = report.splits[0]
    broken = {sample for one in report.findings if one.severity == "error" for sample in one.samples}
    encoders = {name: build_encoder(channel.encoder, setup.encoders) for name, channel in setup.channels.items()}
    data = PatchDataset((), setup.frames, encoders, setup.channels)
    samples = [sample for sample in split.samples if sample.id not in broken]
    return probe_samples(samples, data, watch=lambda rows: track(rows, "Probing features", enabled=progress))
