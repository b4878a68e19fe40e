"""Names of a package that are imported when they are asked for, since what they need takes long to import."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from importlib import import_module
from typing import Any

__all__ = ["lazily"]


def lazily(package: str, **modules: Sequence[str]) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """`__getattr__` and `__dir__` (PEP 562) of a package, for the names that each of its modules has.

    No name may be that of a module as well, for a module is an attribute of its package from its first import on.
    """
    homes = {name: module for module, names in modules.items() for name in names}
    namespace = vars(sys.modules[package])

    def give(name: str) -> Any:
        if name not in homes:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        value = getattr(import_module(f"{package}.{homes[name]}"), name)
        namespace[name] = value  # the next time it is simply there
        return value

    def tell() -> list[str]:
        return sorted({*namespace, *homes})

    return give, tell
