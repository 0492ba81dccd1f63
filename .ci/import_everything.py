"""Import every module of the installed package: none may need an extra, but those that are named after the program they serve."""

import importlib
import pkgutil
import sys

import pave

names = [m.name for m in pkgutil.walk_packages(pave.__path__, "pave.") if not m.name.endswith("__main__")]
left_out = []
for name in names:
    try:
        importlib.import_module(name)
    except ModuleNotFoundError as error:
        program = name.removeprefix("pave.integrations.")
        if program == name or (error.name or "").split(".")[0] != program:
            raise
        left_out.append(program)
print(f"{len(names) - len(left_out)} modules of pave {pave.__version__} import on Python {sys.version.split()[0]}")
if left_out:
    print(f"not installed, so what serves it was left out: {', '.join(left_out)}")
