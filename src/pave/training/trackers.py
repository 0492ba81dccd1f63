"""Where a run's numbers are sent besides its log: whether that can be had."""

from __future__ import annotations

from pave.training.arguments import TrainingConfig
from pave.utils.optional import MissingExtraError, require


def trackers(training: TrainingConfig) -> list[str]:
    """The trackers of a run by the Trainer's names, in order."""
    asked = training.trainer.get("report_to", training.report_to)
    return [asked] if isinstance(asked, str) else list(asked or ())


def check_tracker(name: str) -> None:
    """Refuse a tracker that the Trainer would refuse when everything is loaded.

    Raises:
        ValueError: if there is no such tracker.
        MissingExtraError: if its package is not installed.
    """
    from transformers.integrations import integration_utils as known

    if name in ("all", "none"):
        return
    if name == "tensorboard":
        require("tensorboard", extra="tensorboard", purpose="training.report_to: tensorboard")
        return
    if name not in known.INTEGRATION_TO_CALLBACK:
        raise ValueError(
            f"training.report_to: there is no tracker {name!r}; there are {', '.join(known.INTEGRATION_TO_CALLBACK)}"
        )
    installed = set(known.get_available_reporting_integrations())
    installed |= {"azure_ml"} if known.is_azureml_available() else set()
    installed |= {"flyte"} if known.is_flytekit_available() else set()
    if name not in installed:
        raise MissingExtraError(
            f"training.report_to: {name} needs a package that is not installed; install it as its own documentation says, or leave it "
            "out of training.report_to"
        )
