"""TRL's trainers without the wait for vLLM, which TRL imports with them wherever it is installed.

    with vllm_when_used():
        from trl import GRPOTrainer

What TRL takes from vLLM meanwhile is a stand-in that imports the real thing when it is called or looked into, so
TRL's own vLLM modes go on working in the same process. Loading vLLM takes longer than all else a trainer imports.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib import import_module
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from importlib.util import find_spec, spec_from_loader
from types import ModuleType
from typing import Any

_PACKAGE = "vllm"


class _Late:
    """`module.name`, imported at its first use."""

    def __init__(self, module: str, name: str) -> None:
        self._module, self._name = module, name

    def _found(self) -> Any:
        return getattr(import_module(self._module), self._name)

    def __call__(self, *args: Any, **named: Any) -> Any:
        return self._found()(*args, **named)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._found(), name)


class _LateModule(ModuleType):
    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return _Late(self.__name__, name)


class _LateFinder(MetaPathFinder, Loader):
    def find_spec(
        self, name: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        ours = name == _PACKAGE or name.startswith(f"{_PACKAGE}.")
        return spec_from_loader(name, self, is_package=True) if ours else None

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        return _LateModule(spec.name)

    def exec_module(self, module: ModuleType) -> None:
        pass  # its names are made as they are asked for


@contextmanager
def vllm_when_used() -> Iterator[None]:
    """What is imported within sees stand-ins for vLLM; nothing happens where it is loaded already or not installed."""
    if _PACKAGE in sys.modules or find_spec(_PACKAGE) is None:
        yield
        return
    finder = _LateFinder()
    sys.meta_path.insert(0, finder)
    try:
        yield
    finally:
        sys.meta_path.remove(finder)
        for name in [name for name, module in sys.modules.items() if isinstance(module, _LateModule)]:
            del sys.modules[name]
