"""Python imports this file at its start, if the agent has put this folder into PYTHONPATH.

That is before the program's own code, so the process may become the preloader here. In a worker it
removes itself: what Python does next is what it does in any process.
"""

# ruff: noqa: PTH118, PTH120 - pathlib would be imported into each worker

import importlib.util
import os
import sys
from types import ModuleType

_NAME = "_rallypoint_preload"


def _load() -> ModuleType:
    # By its path: a worker must not find the package `rallypoint` imported.
    path = os.path.join(os.path.dirname(os.path.dirname(__file__)), "preload_process.py")
    spec = importlib.util.spec_from_file_location(_NAME, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[_NAME] = module
    spec.loader.exec_module(module)
    return module


try:
    _load().main(os.path.dirname(__file__))
finally:
    sys.modules.pop(_NAME, None)
