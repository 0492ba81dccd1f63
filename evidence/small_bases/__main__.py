"""Train a base model of the playground from scratch on the silent world, measure it on unseen clips and save it.

    python -m evidence.small_bases --out DIR --seed 0
    python -m evidence.small_bases --kind qwen2_5_vl --out DIR

Everything it sees are frames as they come back from real H.264 files. About half an hour of one processor core; the
trained result ships inside the package (``pave.playground.base_path()``). Other kinds, of other sizes or of another
family, are what ``python -m evidence`` compares it with.
"""

from __future__ import annotations

import argparse
import logging
import tempfile
import time
from pathlib import Path

from evidence.small_bases.families import KINDS
from evidence.small_bases.making import TEST_CLIPS, make_base
from pave.utils.console import setup_logging


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m evidence.small_bases", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True, help="folder of the base; an older one is replaced")
    parser.add_argument("--kind", choices=list(KINDS), default="playground", help="size and family of the base")
    parser.add_argument("--seed", type=int, default=0, help="of scenes, weights and order")
    parser.add_argument("--clips", type=int, help="training clips; by default the kind's own number")
    parser.add_argument("--tower-steps", type=int, help="steps of 64 frames, likewise")
    parser.add_argument("--language-steps", type=int, help="steps of 16 clips, likewise")
    parser.add_argument("--test-clips", type=int, default=TEST_CLIPS, help="clips of the measurement")
    parser.add_argument("--work", type=Path, help="folder where rendered clips stay; by default a temporary one")
    options = vars(parser.parse_args())
    setup_logging()
    start = time.monotonic()
    with tempfile.TemporaryDirectory() as temporary:
        make_base(work=options.pop("work") or Path(temporary), **options)
    logging.getLogger("pave").info("saved %s after %.0f s", options["out"], time.monotonic() - start)


if __name__ == "__main__":
    main()
