"""``pave train``: run a recipe, or say what it would take."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import typer

from pave.cli.shared import JobFailed, JsonOption, Result


def command(
    recipe: Path = typer.Argument(..., help="The recipe, a YAML file; pave init writes one to start from."),
    overrides: list[str] | None = typer.Argument(
        None,
        help="Changes to it: training.learning_rate=1e-4 data.frames.num_frames=16, or a .yaml file that is laid over it.",
    ),
    resume: bool = typer.Option(False, "--resume", help="Go on from the last checkpoint in the recipe's output folder."),
    dry_run: bool = typer.Option(
        False,
        "--dry-run",
        help="Train nothing: list what is missing, and estimate memory, steps and cost. Exit code 1 if anything is missing.",
    ),
    processes: int = typer.Option(1, "--processes", min=1, help="With --dry-run: devices, a process for each."),
    samples: int | None = typer.Option(
        None, "--samples", min=1, help="With --dry-run: number of training samples, where their file is not there."
    ),
    side_steps: int = typer.Option(64, "--side-steps", min=1, help="With --dry-run: side steps of every channel."),
    video_size: str = typer.Option(
        "640x360", "--video-size", help="With --dry-run: width x height of the videos, for bases that keep the resolution."
    ),
    seconds: float = typer.Option(
        60.0, "--seconds", help="With --dry-run: length of a video, where frames are sampled by fps."
    ),
    tflops: float = typer.Option(
        200.0, "--tflops", help="With --dry-run: operations a device does in a second of training, in 10^12."
    ),
    profile: bool = typer.Option(
        False, "--profile", help="Time the parts of the first steps: a table, and <output>/profile.json."
    ),
    profile_steps: int = typer.Option(20, "--profile-steps", help="Steps that --profile times, after the first one."),
    json_output: bool = JsonOption,
) -> Result:
    """\b
    pave train recipe.yaml training.learning_rate=1e-3 training.seed=1
    pave train recipe.yaml --dry-run --processes 8

    Train a patch as the recipe says and save it under <output>/patch. An interrupted run goes on with --resume and ends as if
    it had not been interrupted.
    """
    from pave.config import read_strict
    from pave.training.recipe_files import read_values

    values, where = read_values(recipe, overrides or [])  # this and what follows before torch is loaded, which takes seconds
    size = _size(video_size)
    if not dry_run:
        _check_files_of_samples(values, recipe.parent)
    from pave.cli.models import hide_loading_bars
    from pave.training.recipe import Recipe

    plan = read_strict(Recipe, values, where)

    hide_loading_bars()
    if dry_run:
        from pave.cli.dry_run import result_of
        from pave.training.dry_run_shape import Assumptions

        assumed = Assumptions(
            samples=samples,
            processes=processes,
            side_steps=side_steps,
            video_size=size,
            seconds=seconds,
            teraflops=tflops,
        )
        return result_of(plan, recipe.parent, assumed, resume)
    from pave.evaluation.judging import GeneratedAnswers
    from pave.training.callbacks import NoGradientError, NonFiniteError
    from pave.training.checkpoints import CheckpointError, last_checkpoint
    from pave.training.interrupt import TrainingInterrupted
    from pave.training.profile import StepProfile
    from pave.training.run import run_recipe
    from pave.training.together import OtherProcessError

    timers = StepProfile(profile_steps) if profile else None
    try:
        result = run_recipe(plan, folder=recipe.parent, resume=resume, profile=timers, judge=GeneratedAnswers())
    except (CheckpointError, NoGradientError, NonFiniteError, OtherProcessError) as error:
        raise JobFailed(" ".join(str(error).split())) from error
    except TrainingInterrupted as stop:
        if last_checkpoint(plan.output) is None:
            raise
        command_line = shlex.join(["pave", "train", str(recipe), *(overrides or []), "--resume"])
        raise TrainingInterrupted(f"{stop}: {command_line}") from None
    data: dict[str, Any] = {
        "patch": str(result.patch),
        "steps": result.steps,
        "train_loss": result.train_loss,
        "eval_loss": result.eval_loss,
        **({"eval_losses": result.eval_losses} if result.eval_losses else {}),
        **({} if result.eval_accuracy is None else {"eval_accuracy": result.eval_accuracy}),
        "seconds": round(result.seconds, 1),
    }
    losses = "nothing was left to train" if result.train_loss is None else f"mean loss {result.train_loss:.4g}"
    if result.eval_loss is not None:
        losses += f", held-out loss {result.eval_loss:.4g}"
    if result.eval_losses:
        losses += f" ({', '.join(f'{task} {loss:.4g}' for task, loss in result.eval_losses.items())})"
    if result.eval_accuracy is not None:
        losses += f", {result.eval_accuracy:.1%} of held-out answers right"
    if timers is not None and timers.taken:
        data["profile"] = timers.report()
    return Result(f"{result.steps} steps in {result.seconds:.0f} s, {losses}\npatch saved to {result.patch}", data)


def _check_files_of_samples(values: Mapping[str, Any], folder: Path) -> None:
    """Whatever else is wrong with a recipe is said later, in the order of its keys."""
    data = values.get("data")
    data = data if isinstance(data, dict) else {}
    tasks = data.get("tasks")
    for place in (data, *(tasks.values() if isinstance(tasks, dict) else ())):
        for name in (place.get(key) for key in ("train", "eval") if isinstance(place, dict)):
            if isinstance(name, str) and name.strip() and not (folder / name).is_file():
                raise ValueError(f"{folder / name}: there is no such file of samples")


def _size(text: str) -> tuple[int, int]:
    """Height and width of ``WIDTHxHEIGHT``."""
    width, _, height = text.lower().partition("x")
    if not (width.strip().isdigit() and height.strip().isdigit()):
        raise ValueError(f"--video-size is width x height in pixels, such as 640x360, got {text!r}")
    return int(height), int(width)
