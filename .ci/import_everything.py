"""Import every module of the installed package: none may need an extra."""

import importlib
import pkgutil
import sys

import pave

names = [m.name for m in pkgutil.walk_packages(pave.__path__, "pave.") if not m.name.endswith("__main__")]
for name in names:
    importlib.import_module(name)
print(f"{len(names)} modules of pave {pave.__version__} import on Python {sys.version.split()[0]}")
