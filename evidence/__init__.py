"""The method, checked on the playground: what ``python -m evidence`` runs.

A *run* is one world, one variant of a patch, one seed: train, save, load again, answer the held-out questions. Every
run leaves a folder with its predictions and a ``result.json``; a run that is there already is not made again, so an
interrupted reproduction goes on where it stopped, and two sections that need the same run share it. A *section* names
the runs it needs and writes its tables from their predictions alone, and its views from their weights.

From the ground up: ``worlds`` (each channel's world: recipe, clips, questions), ``runs`` (a run as data), ``bases``
(further bases, trained by ``small_bases``), ``features`` (what all runs read), ``patch_sums`` (patches added up),
``execution`` (runs are made). ``scores`` compares answers, ``attention`` asks a trained patch where it looks,
``measurement`` has what a prompt costs; ``tables``, ``charts`` and ``attention_figure`` show it, ``figures`` writes
files beside the page. ``variants`` reads a reader's rows, ``plan`` says how large a reproduction is, ``sections`` put
comparisons side by side in the order of ``contents``, ``reuse`` holds what is there against what would be made now,
``page`` writes the page.
"""
