"""Where a run's numbers are sent besides its log: whether that can be had, and under which names."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

from pave.training.arguments import DEFAULT_PROJECT, TrainingConfig
from pave.utils.optional import MissingExtraError, require

PROJECT_VARIABLES = {
    "wandb": "WANDB_PROJECT",
    "mlflow": "MLFLOW_EXPERIMENT_NAME",
    "comet_ml": "COMET_PROJECT_NAME",
    "clearml": "CLEARML_PROJECT",
    "swanlab": "SWANLAB_PROJECT",
}
"""Where the Trainer's callback of a tracker reads the project; trackio takes it as an argument, tensorboard has none."""


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


@contextlib.contextmanager
def project_named(training: TrainingConfig) -> Iterator[None]:
    """For the time of a run, the project's name where each of its trackers reads it."""
    variables = [PROJECT_VARIABLES[name] for name in trackers(training) if name in PROJECT_VARIABLES]
    before = {variable: os.environ.get(variable) for variable in variables}
    for variable in variables:
        os.environ[variable] = project_of(training, variable)
    try:
        yield
    finally:
        for variable, value in before.items():
            if value is None:
                os.environ.pop(variable, None)
            else:
                os.environ[variable] = value


def project_of(training: TrainingConfig, variable: str | None) -> str:
    """The project of a tracker that reads this variable: as the recipe says, else as the variable does, else ``DEFAULT_PROJECT``."""
    from_outside = os.environ.get(variable) if variable is not None else None
    return training.project or from_outside or DEFAULT_PROJECT


def names_in_trackers(training: TrainingConfig, output: str) -> list[str]:
    """A sentence for each tracker of a run."""
    run = training.trainer.get("run_name") or training.run_name or Path(output).name
    sentences = []
    for name in trackers(training):
        project = "" if name == "tensorboard" else f"project {project_of(training, PROJECT_VARIABLES.get(name))!r}, "
        sentences.append(f"numbers go to {name}, {project}run {run!r}")
    return sentences
