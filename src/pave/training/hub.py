"""What the Trainer uploads of a patch: a repository that ``load_patch`` reads, and no files of a whole model."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from transformers.trainer_utils import HubStrategy
from transformers.utils.hub import PushInProgress

from pave.training.checkpoints import PATCH_ENTRIES
from pave.utils.files import atomic_folder


def upload(trainer: Any, folder: Path, message: str | None, **options: Any) -> Any:
    """Upload a folder to the Trainer's repository."""
    from huggingface_hub import HfApi

    return HfApi().upload_folder(repo_id=trainer.hub_model_id, folder_path=folder, commit_message=message, **options)


def push_from_checkpoint(trainer: Any, checkpoint: Path, folder: Path) -> None:
    """Upload what ``hub_strategy`` says when a checkpoint has been written: the patch in it, and perhaps all of it.

    Args:
        trainer: of the process that uploads.
        checkpoint: its folder.
        folder: where the patch is copied to first, since the checkpoint may be deleted before the upload ends.
    """
    strategy = trainer.args.hub_strategy
    pending = trainer.push_in_progress is not None and not trainer.push_in_progress.is_done()
    if strategy == HubStrategy.END or (pending and not trainer.args.hub_always_push):
        return
    with atomic_folder(folder) as work:
        for entry in (checkpoint / name for name in PATCH_ENTRIES):
            if entry.is_dir():
                shutil.copytree(entry, work / entry.name)
            elif entry.is_file():
                shutil.copy(entry, work)
    message = f"Training in progress, step {trainer.state.global_step}"
    options = {"token": trainer.args.hub_token, "revision": trainer.args.hub_revision, "run_as_future": True}
    jobs = [upload(trainer, folder, message, **options)]
    if strategy in (HubStrategy.CHECKPOINT, HubStrategy.ALL_CHECKPOINTS):
        place = "last-checkpoint" if strategy == HubStrategy.CHECKPOINT else checkpoint.name
        jobs.append(upload(trainer, checkpoint, f"{message}, checkpoint", path_in_repo=place, **options))
    if pending:
        trainer.push_in_progress.jobs.extend(jobs)
    else:
        trainer.push_in_progress = PushInProgress(jobs)  # type: ignore[arg-type]  # it takes a list
