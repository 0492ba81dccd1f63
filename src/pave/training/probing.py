"""What ``pave probe`` and the dry run need of a recipe: its training samples, and a dataset that makes their features."""

from __future__ import annotations

from pathlib import Path

from pave.data.dataset import PatchDataset
from pave.data.samples import Sample
from pave.data.store.reading import StoredChannels
from pave.side_channels import build_encoder
from pave.training.recipe import Recipe
from pave.training.tasks import RunSamples


def probe_data(recipe: Recipe, folder: str | Path) -> tuple[PatchDataset, list[Sample]]:
    """The dataset, with features from the recipe's store if it has one, and the training samples of all tasks.

    Args:
        recipe: what would be trained.
        folder: what its relative paths start from.

    Raises:
        ValueError: if a file of samples is wrong or a file that they name is not there, an encoder cannot be had, or the store lacks
            something.
    """
    folder = Path(folder)
    samples = RunSamples(recipe.data.all_tasks(), recipe.data.mixing, folder, list(recipe.patch.side_channels)).train
    own = recipe.own_encoders(folder)
    encoders = {name: build_encoder(channel.encoder, own) for name, channel in recipe.patch.side_channels.items()}
    stored = None
    if recipe.data.store is not None:
        stored = StoredChannels(folder / recipe.data.store, encoders)
        stored.check_complete(samples, "pave extract with this recipe")
    return PatchDataset((), recipe.data.frames, encoders, recipe.patch.side_channels, stored=stored), samples
