"""From a model and what it is shown to answers."""
