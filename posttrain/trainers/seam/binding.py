"""Trainer and config of a method, made from its line in the list of methods when they are asked for.

A wing's `bindings.py` names its base trainer and config once; the methods are those of METHODS that point there.
"""

from __future__ import annotations

import inspect
import sys
from dataclasses import dataclass
from typing import Any

from posttrain.recipe.errors import suggest
from posttrain.recipe.methods import METHODS, Method
from posttrain.trainers.seam.config import flat_config


@dataclass(frozen=True)
class Binding:
    """How one wing's methods become classes.

    module     the wing's bindings.py, where the classes say they live: a checkpoint pickles its config by that name
    trainer    base of the trainers
    config     base of the configs
    learner    the class variable of `trainer` that names what is trained: "objective_class" or "method_class"
    """

    module: str
    trainer: type
    config: type
    learner: str

    def methods(self) -> dict[str, Method]:
        """The wing's methods by the stem of their classes' names ("BAPO")."""
        paths = ((method.trainer.split(":"), method) for method in METHODS.values())
        return {name.removesuffix("Trainer"): method for (home, name), method in paths if home == self.module}

    def names(self) -> list[str]:
        return sorted(stem + kind for stem in self.methods() for kind in ("Config", "Trainer"))

    def __call__(self, name: str) -> Any:
        """The class of that name, for the module's `__getattr__`; the same one at every call."""
        stem = name.removesuffix("Trainer").removesuffix("Config")
        if name not in self.names():
            raise AttributeError(
                f"module {self.module!r} has no attribute {name!r}{suggest(name, self.names())}"
            )
        method, made = self.methods()[stem], vars(sys.modules[self.module])
        settings = method.load_settings()
        # setdefault: of two threads that ask at once, both get the first one's class
        config = made.setdefault(
            f"{stem}Config", flat_config(f"{stem}Config", self.config, settings, self.module)
        )
        told = {
            "__doc__": _page(stem, method, settings, self.trainer),
            "__module__": self.module,
            self.learner: settings,
            "config_class": config,
        }
        made.setdefault(f"{stem}Trainer", type(f"{stem}Trainer", (self.trainer,), told))
        return made[name]


def _page(stem: str, method: Method, settings: type, base: type) -> str:
    """What `help` shows of a trainer: the method and its paper, and the parameters of the trainer it is made of."""
    paper = (inspect.getdoc(sys.modules[settings.__module__]) or "").strip()
    return (
        f"{stem}: {method.summary}. `help({stem}Config)` lists its settings.\n\n{paper}\n\n"
        f"A {base.__name__}, whose parameters it has:\n\n{inspect.getdoc(base)}"
    )
