"""Names of a package that are imported when they are asked for."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

from shardpipe.runtime import lazily


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    """`lazy_one`, whose modules say when they are imported."""
    (tmp_path / "lazy_one").mkdir()
    (tmp_path / "lazy_one/__init__.py").write_text("imported = []\n")
    for module, value in (("heavy", 1), ("heavier", 2)):
        (tmp_path / f"lazy_one/{module}.py").write_text(
            f"from lazy_one import imported\nimported.append({module!r})\n{module.upper()} = object(), {value}\n"
        )
    monkeypatch.syspath_prepend(tmp_path)
    made = __import__("lazy_one")
    made.__getattr__, made.__dir__ = lazily("lazy_one", heavy=["HEAVY", "NOT_THERE"], heavier=["HEAVIER"])  # type: ignore[method-assign, assignment]
    yield made
    for name in [name for name in sys.modules if name.partition(".")[0] == "lazy_one"]:
        del sys.modules[name]


def test_a_module_is_imported_when_its_name_is_asked_for(package: ModuleType) -> None:
    assert package.imported == []
    first = package.HEAVY
    assert first[1] == 1
    assert package.imported == ["heavy"]
    assert package.HEAVY is first, "and is then simply there"
    assert "HEAVY" in vars(package)
    from lazy_one import HEAVIER  # type: ignore[import-not-found]

    assert HEAVIER[1] == 2
    assert package.imported == ["heavy", "heavier"]


def test_what_it_names_is_listed_before_it_is_imported(package: ModuleType) -> None:
    assert {"HEAVY", "HEAVIER", "imported"} <= set(dir(package))
    assert package.imported == []


def test_names_that_are_not_there(package: ModuleType) -> None:
    with pytest.raises(AttributeError, match="module 'lazy_one' has no attribute 'nothing'"):
        _ = package.nothing
    with pytest.raises(AttributeError, match="NOT_THERE"):
        _ = package.NOT_THERE
    assert not hasattr(package, "imported_later")
