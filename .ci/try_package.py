"""Try each given wheel or sdist in an empty environment: every module imports, and a patch is trained and asked.

python .ci/try_package.py dist/*.whl dist/*.tar.gz
"""

import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def run(*words: object, cwd: Path) -> None:
    print("+", *words, flush=True)
    subprocess.run([str(word) for word in words], check=True, cwd=cwd)


def try_archive(archive: Path) -> None:
    """Install the archive alone, away from the source tree, and walk the first steps of a new user."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        run(sys.executable, "-m", "venv", "env", cwd=folder)
        python, pave = folder / "env" / "bin" / "python", folder / "env" / "bin" / "pave"
        run(python, "-m", "pip", "install", "--quiet", "-c", ROOT / "constraints.txt", archive, cwd=folder)
        run(python, ROOT / ".ci" / "import_everything.py", cwd=folder)
        run(pave, "--version", cwd=folder)
        run(pave, "init", "first", cwd=folder)
        run(pave, "train", "first/recipe.yaml", cwd=folder)
        clip = next((folder / "first" / "clips" / "test").iterdir())
        run(pave, "ask", clip, "what sound is heard ?", "--patch", "first/run/patch", "--compare", cwd=folder)


for argument in sys.argv[1:]:
    try_archive(Path(argument).resolve())
