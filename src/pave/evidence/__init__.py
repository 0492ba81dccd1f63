"""The method, checked on the playground: what ``pave reproduce`` runs.

A *run* is one world, one variant of a patch, one seed: train, save, load again, answer the held-out questions. Every run leaves a
folder with its predictions and a ``result.json``; a run that is there already is not made again, so an interrupted reproduction goes
on where it stopped, and two sections that need the same run share it. A *section* names the runs it needs and writes its tables
from their predictions alone, and its views from their weights.

``worlds`` says what each channel's world is, ``rendered`` makes their clips and questions, ``bases`` further bases, ``runs`` makes runs,
``stored`` the features that all of them read, ``added`` patches that are sums of others, ``measured`` what a prompt costs;
``processes`` does such work side by side. ``own`` reads a reader's own variants. ``kept`` holds what is there already against what
would be made now. ``scores`` compares answers, ``looks`` asks a trained patch where it looks, ``sections`` puts comparisons side by side
(in ``tables``), ``charts`` and ``look_drawing`` draw (with ``svg``), ``document`` writes the page and ``figures`` the files beside it.
"""
