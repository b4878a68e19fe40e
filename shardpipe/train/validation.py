"""The sets that a run is evaluated on, by name, and the names of the figures that are found on them."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

from shardpipe.errors import ConfigError

__all__ = ["FIGURES", "ONLY", "figure_of", "named", "sets_of", "shown"]

FIGURES = ("loss", "wer", "cer")
ONLY = "valid"
"""The name of a set that was given none."""
_NAME = r"[A-Za-z0-9_][\w.-]*"
_NAMED = re.compile(rf"({_NAME})=(.*)", re.ASCII | re.DOTALL)
_NEXT = re.compile(rf",\s*(?={_NAME}=)", re.ASCII)
_FIX = "Give --valid DIR, or --valid dev=DIR,test=DIR with a name for each; in YAML they are a mapping."


def sets_of(valid: object) -> dict[str, str]:
    """Places by name, of the setting: `DIR`, `dev=DIR,test=DIR`, or a mapping. Raises ConfigError."""
    if valid is None:
        return {}
    if isinstance(valid, str):
        parts = _NEXT.split(valid)
        pairs = [(match[1], match[2]) for part in parts if (match := _NAMED.fullmatch(part))]
        if pairs and len(pairs) < len(parts):
            raise ConfigError("valid", valid, f"{parts[0]!r} has no name, and others have", fix=_FIX)
        pairs = pairs or [(ONLY, valid)]
    elif isinstance(valid, Mapping):
        pairs = list(valid.items())
    else:
        raise ConfigError("valid", valid, "it names no sets", fix=_FIX)
    found: dict[str, str] = {}
    for name, place in pairs:
        if not isinstance(name, str) or not re.fullmatch(_NAME, name, re.ASCII):
            raise ConfigError("valid", valid, f"{name!r} is no name: letters, digits, '.', '-' and '_'", fix=_FIX)
        if not isinstance(place, str) or not place:
            raise ConfigError("valid", valid, f"{place!r}, which {name} is to be, is no folder or URL", fix=_FIX)
        if name in found:
            raise ConfigError("valid", valid, f"two sets have the name {name}", fix=_FIX)
        if name == "train":
            raise ConfigError("valid", valid, "train is the name of the training's own curves", fix=_FIX)
        found[name] = place
    return found


def named(name: str, figure: str) -> str:
    """The name of a figure of a set."""
    return f"{name}/{figure}"


def shown(name: str, sets: Iterable[str] = ()) -> str:
    """A figure's name as a person reads it: that of the only set, which was given no name, is the figure's alone."""
    return name.removeprefix(named(ONLY, "")) if set(sets) <= {ONLY} else name


def figure_of(setting: str, by: str, sets: Iterable[str]) -> str:
    """The figure of a set that `loss`, which is of the first set, or `dev/loss` names. Raises ConfigError about
    `setting`.
    """
    known = list(sets)
    name, _, figure = by.rpartition("/")
    if figure not in FIGURES:
        raise ConfigError(setting, by, f"it must be one of {', '.join(FIGURES)}, or one of a set's, like dev/cer")
    if not known or (name and name not in known):
        found = f"the sets are {', '.join(known)}" if known else "there is no validation set"
        raise ConfigError(
            setting, by, found, fix=f"Name one of these, like {known[0]}/cer." if known else "Give --valid."
        )
    return named(name or known[0], figure)
