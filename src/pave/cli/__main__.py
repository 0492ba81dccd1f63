"""``python -m pave.cli``."""

import sys

from pave.cli import main

sys.exit(main())
