"""Every test runs on one thread and offline. ``--write-families`` writes down what the conformance suite showed of each family."""

import json
import os
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import pytest
import torch

torch.set_num_threads(1)


def pytest_addoption(parser):
    parser.addoption("--write-families", metavar="FILE", help="write which checks each family of base models passed, as JSON")


def pytest_configure(config):
    if config.getoption("--write-families"):
        config.pluginmanager.register(FamilyRecord(Path(config.getoption("--write-families"))))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item, call):
    """Name the family and what a test shows in its report, which travels from a worker process too."""
    report = yield
    marker = item.get_closest_marker("shows")
    if marker is not None:
        report.user_properties = [
            *report.user_properties,
            ("shows", marker.args[0]),
            ("family", item.callspec.params["family"]),
        ]
    return report


class FamilyRecord:
    """Collects reports into {"families": {model_type: {facts, "checks": {what: "passed" | "failed" | reason}}}}."""

    def __init__(self, path):
        self.path = path
        self.families = {}

    def pytest_runtest_logreport(self, report):
        seen = dict(report.user_properties)
        if "shows" not in seen or (report.when != "call" and report.passed) or report.when == "teardown":
            return
        entry = self.families.setdefault(seen["family"], {"checks": {}})
        entry.update(seen.get("facts", {}))
        if report.skipped and report.when == "call" and "limit" not in seen:
            return  # the check is not about this family
        result = "failed" if report.failed else seen.get("limit", "not run" if report.skipped else "passed")
        before = entry["checks"].get(seen["shows"])
        entry["checks"][seen["shows"]] = "failed" if "failed" in (before, result) else result

    def pytest_sessionfinish(self, session):
        import transformers

        if hasattr(session.config, "workerinput"):
            return
        record = {"transformers": transformers.__version__, "families": self.families}
        self.path.write_text(json.dumps(record, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
