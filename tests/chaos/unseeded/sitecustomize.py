"""For the negative control of `test_sigkill.py`: an epochd whose seeds depend on what ran before in the process.

Uninterrupted trainings still repeat themselves; a training that goes on in another process does not.
"""

import importlib.abc
import importlib.util
import itertools
import sys
from collections.abc import Sequence
from importlib.machinery import ModuleSpec
from types import ModuleType

_drawn = itertools.count(1)


class _Counting(importlib.abc.Loader):
    def __init__(self, loader: importlib.abc.Loader) -> None:
        self._loader = loader

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return self._loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        self._loader.exec_module(module)
        module.derived_seed = lambda _seed, _epoch, _purpose: next(_drawn)  # type: ignore[attr-defined]


class _Finder(importlib.abc.MetaPathFinder):
    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname != "worker.training.order":
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(fullname)
        assert spec is not None
        assert spec.loader is not None
        spec.loader = _Counting(spec.loader)
        return spec


sys.meta_path.insert(0, _Finder())
