"""Print one value of a recipe, for scripts and Makefiles; nothing where it is null or not there. It loads no torch.

python scripts/recipe_value.py recipes/music_avqa_compact.yaml base.model [CHANGES...]
"""

import sys
from typing import Any

from pave.training.recipe_files import read_values

recipe, key, *changes = sys.argv[1:]
value: Any = read_values(recipe, changes)[0]
for part in key.split("."):
    value = value.get(part) if isinstance(value, dict) else None
if value is not None:
    print(value)
