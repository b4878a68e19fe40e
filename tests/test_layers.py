"""The architecture as a test: what each module may import, and who may read the environment."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import shardpipe

PACKAGE = Path(shardpipe.__file__).parent

# A module imports from the lines above its own, never from its own line or below.
LAYERS = [
    {"errors"},
    {"settings", "forks"},
    {"places"},
    {"store", "publish", "quota", "lists", "audio", "bijection", "cut", "console", "lru"},
    {"shard", "parts", "jobs", "order", "buffers", "pipeline", "ending"},
    {"manifest", "scan", "plan"},
    {"index", "cache"},
    {"sequence", "read"},
    {"work", "prefetch"},
    {"pack", "verify", "batch", "explain"},
    {"workers", "device"},
    {"loader"},
    {"train"},
    {"demo"},
    {"cli"},
]
LEVEL = {name: level for level, names in enumerate(LAYERS) for name in names}

# Where a library may be imported at all. torch and torchaudio are imported by audio.resample when called, not before.
ONLY_IN = {
    "fsspec": {"store"},
    "torch": {"audio", "batch", "device", "loader", "train"},
    "torchaudio": {"audio", "train"},
    "tensorboard": {"train"},
    "jsonargparse": {"train"},
    "typer": {"cli"},
    "miniaudio": {"audio"},
    "soundfile": {"audio"},
}
PURE = {"order", "plan", "bijection", "cut"}
PURE_MAY_IMPORT = {
    "numpy",
    "shardpipe",
    "__future__",
    "collections",
    "dataclasses",
    "heapq",
    "itertools",
    "math",
    "typing",
}
WRITE_SIDE = {"pack", "verify", "lists", "shard", "scan"}
READ_SIDE = {
    "order",
    "plan",
    "bijection",
    "cut",
    "cache",
    "sequence",
    "read",
    "work",
    "batch",
    "workers",
    "device",
    "loader",
}
TRAIN_MAY_IMPORT = {"shardpipe", "loader", "batch", "errors", "settings", "places", "bijection", "publish"}
ENTRY_POINTS = {"cli.py", "train/cli.py", "train/__main__.py"}


def sources() -> list[Path]:
    return sorted(PACKAGE.rglob("*.py"))


def module_of(path: Path) -> str:
    """`order` for shardpipe/order.py, `train` for everything under shardpipe/train."""
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imports(path: Path) -> Iterator[str]:
    """Dotted names imported anywhere in a file, but for what only type checkers see."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: a relative import"
            module = node.module or ""
            yield from (f"{module}.{alias.name}" for alias in node.names) if module == "shardpipe" else (module,)


def shardpipe_imports(path: Path) -> set[str]:
    found = {name.split(".")[1] for name in imports(path) if name.startswith("shardpipe.")}
    return {name if name in LEVEL else "shardpipe" for name in found}


def test_every_module_has_a_layer() -> None:
    assert {module_of(path) for path in sources()} - {"__init__"} == set(LEVEL)


@pytest.mark.parametrize("path", sources(), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_point_downwards(path: Path) -> None:
    module = module_of(path)
    if module == "__init__":
        return
    # A package (audio, train) is one module here.
    for name in shardpipe_imports(path) - {"shardpipe", "" if path.parent == PACKAGE else module}:
        assert LEVEL[name] < LEVEL[module], f"{module} imports {name}"


@pytest.mark.parametrize("path", sources(), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_libraries_stay_where_they_belong(path: Path) -> None:
    for name in imports(path):
        allowed = ONLY_IN.get(name.split(".")[0])
        assert allowed is None or module_of(path) in allowed, f"{path.name} imports {name}"


def test_order_and_plan_are_pure() -> None:
    for module in PURE:
        roots = {name.split(".")[0] for name in imports(PACKAGE / f"{module}.py")}
        assert roots <= PURE_MAY_IMPORT, f"{module} imports {roots - PURE_MAY_IMPORT}"


def test_the_write_side_does_not_know_the_read_side() -> None:
    for path in sources():
        if module_of(path) in WRITE_SIDE:
            assert not shardpipe_imports(path) & READ_SIDE, path.name


def test_train_reaches_data_through_the_loader_alone() -> None:
    for path in (PACKAGE / "train").rglob("*.py"):
        assert shardpipe_imports(path) - {"train"} <= TRAIN_MAY_IMPORT, path.name


def test_the_environment_is_read_at_the_entry_points_alone() -> None:
    for path in sources():
        tree = ast.parse(path.read_text())
        reads = [n for n in ast.walk(tree) if isinstance(n, ast.Attribute) and n.attr in ("environ", "getenv")]
        assert not reads or path.relative_to(PACKAGE).as_posix() in ENTRY_POINTS, path


def test_packing_does_without_torch() -> None:
    """Every worker process of a pack imports this much."""
    import subprocess
    import sys

    code = "import sys, shardpipe.pack; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
