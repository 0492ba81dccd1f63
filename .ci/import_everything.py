"""Import every module of the installed package: none may need an extra, but those named after the program they serve, and the server."""

import importlib
import pkgutil
import sys

import pave

SERVER = ("fastapi", "starlette", "uvicorn", "prometheus_client")
names = [m.name for m in pkgutil.walk_packages(pave.__path__, "pave.") if not m.name.endswith("__main__")]
left_out = []
for name in names:
    try:
        importlib.import_module(name)
    except ModuleNotFoundError as error:
        lacking = (error.name or "").split(".")[0]
        if name != f"pave.integrations.{lacking}" and not (name.startswith("pave.serving.") and lacking in SERVER):
            raise
        left_out.append(lacking)
print(f"{len(names) - len(left_out)} modules of pave {pave.__version__} import on Python {sys.version.split()[0]}")
if left_out:
    print(f"not installed, so what needs it was left out: {', '.join(sorted(set(left_out)))}")
