"""``pave train``: run a recipe."""

from __future__ import annotations

from pathlib import Path

import typer

from pave.cli.shared import JobFailed, JsonOption, Result


def command(
    recipe: Path = typer.Argument(..., help="The recipe, a YAML file; pave init writes one to start from."),
    overrides: list[str] | None = typer.Argument(
        None, help="Changes to it: training.learning_rate=1e-4 data.frames.num_frames=16"
    ),
    resume: bool = typer.Option(False, "--resume", help="Go on from the last checkpoint in the recipe's output folder."),
    json_output: bool = JsonOption,
) -> Result:
    """\b
    pave train recipe.yaml training.steps=200

    Train a patch as the recipe says and save it under <output>/patch. An interrupted run goes on with --resume and ends as if
    it had not been interrupted.
    """
    from pave.training.recipe import read_recipe

    plan = read_recipe(recipe, overrides or [])
    from pave.cli.models import hide_loading_bars
    from pave.training.callbacks import NonFiniteError
    from pave.training.checkpoints import CheckpointError
    from pave.training.run import run_recipe
    from pave.training.together import OtherProcessError

    hide_loading_bars()
    try:
        result = run_recipe(plan, folder=recipe.parent, resume=resume)
    except (CheckpointError, NonFiniteError, OtherProcessError) as error:
        raise JobFailed(" ".join(str(error).split())) from error
    data = {
        "patch": str(result.patch),
        "steps": result.steps,
        "train_loss": result.train_loss,
        "eval_loss": result.eval_loss,
        **({"eval_losses": result.eval_losses} if result.eval_losses else {}),
        "seconds": round(result.seconds, 1),
    }
    losses = "nothing was left to train" if result.train_loss is None else f"mean loss {result.train_loss:.4g}"
    if result.eval_loss is not None:
        losses += f", held-out loss {result.eval_loss:.4g}"
    if result.eval_losses:
        losses += f" ({', '.join(f'{task} {loss:.4g}' for task, loss in result.eval_losses.items())})"
    return Result(f"{result.steps} steps in {result.seconds:.0f} s, {losses}\npatch saved to {result.patch}", data)
