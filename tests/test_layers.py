"""The architecture as a test: the wings, what each may import, and who may read the environment."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from graphlib import TopologicalSorter
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import pytest

import shardpipe
from tests.speech import write_list

PACKAGE = Path(shardpipe.__file__).parent
TESTS = Path(__file__).parent

# A wing imports from the lines below its own, never from its own line or above.
LAYERS = [
    {"cli"},
    {"demo"},
    {"integrations"},
    {"train"},
    {"serve"},
    {"loading"},
    {"cache", "pack"},
    {"dataset", "lists"},
    {"store"},
    {"audio", "order", "runtime"},
    {"settings"},
    {"errors"},
]
LEVEL = {name: level for level, names in enumerate(reversed(LAYERS)) for name in names}
WINGS = sorted(set(LEVEL) - {"errors", "settings"})

LINES_MAX = 300
MODULES_MAX = 12
"""In a folder, besides what is named __like_this__: more of them hide a concept that wants a folder of its own."""

# Where a library may be imported at all: in a wing, or in one module of it.
ONLY_IN = {
    "fsspec": {"store"},
    "s3fs": {"store"},
    "botocore": {"store"},
    "aiohttp": {"store", "serve"},
    "prometheus_client": {"serve", "cli.top"},
    "pyarrow": {"dataset", "pack"},
    "torch": {
        *("loading.making", "loading.loader", "loading.feeding", "loading.ranks", "loading.callers", "loading.wire"),
        *("train", "integrations", "cli.examining.machine"),
    },
    "lightning": {"integrations.lightning", "integrations.lightning_progress"},
    "transformers": {"integrations.transformers"},
    "accelerate": {"integrations.accelerate", "integrations.transformers", "integrations.transformers_evaluation"},
    "torchaudio": {"train.task"},
    "soxr": {"audio"},
    "tensorboard": {"train.logs"},
    "jsonargparse": {"train.cli"},
    "typer": {"cli"},
    "rich": {"cli", "demo", "train.logs"},
    "yaml": {"train", "serve"},
    "miniaudio": {"audio"},
    "soundfile": {"audio"},
    "braceexpand": {"pack", "loading.served"},
}
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
WRITE_SIDE = {"lists", "dataset", "pack"}
READ_SIDE = {"order", "cache", "loading"}
TRAIN_MAY_IMPORT = {
    "dataset": {"Index"},
    "order": {"STEP", "hash_key"},
    "store": {
        *("Count", "Store", "Uploads", "checked_url", "close", "converted", "flush", "is_url", "is_utf8", "only_local"),
        *("open_store", "parsed", "put_in_place", "shallow", "write_file", "writing"),
    },
}
"""And errors, settings and the root: its data come by `from shardpipe import ShardLoader`, as anybody's do. An audit
names samples by the index."""
KNOW_THE_ROOT = {"serve", "train", "integrations", "demo", "cli"}
"""What stands above the loader; to all others the root leads upwards."""
ENTRY_POINTS = {"train.cli"}


class Import(NamedTuple):
    """`from module import names`, or `import module`, which names nothing."""

    module: str
    names: tuple[str, ...]


def name_of(path: Path) -> str:
    """`order.plan` for shardpipe/order/plan.py, `order` for its __init__, "" for the root's."""
    return ".".join(path.relative_to(PACKAGE).with_suffix("").parts).removesuffix("__init__").rstrip(".")


MODULES = {name_of(path): path for path in sorted(PACKAGE.rglob("*.py"))}
PACKAGES = {name for name, path in MODULES.items() if path.name == "__init__.py"}
EVERY_MODULE = pytest.mark.parametrize("module", MODULES, ids=lambda module: module or "shardpipe")
EVERY_WING = pytest.mark.parametrize("wing", WINGS)


def imports(module: str) -> Iterator[Import]:
    """Those anywhere in a module, by absolute names; those for type checkers and those in functions among them."""
    for node in ast.walk(ast.parse(MODULES[module].read_text())):
        if isinstance(node, ast.Import):
            yield from (Import(alias.name, ()) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module}: a relative import"
            yield Import(node.module or "", tuple(alias.name for alias in node.names))


def own_imports(module: str) -> Iterator[Import]:
    """Those of shardpipe's own modules, named as in MODULES: `from shardpipe import store` imports the module store."""
    for target, names in imports(module):
        if target.split(".")[0] != "shardpipe":
            continue
        assert names, f"{module}: write `from {target} import ...`"
        target = target.partition(".")[2]
        inner = [name for name in names if f"{target}.{name}".lstrip(".") in MODULES]
        yield from (Import(f"{target}.{name}".lstrip("."), ()) for name in inner)
        if rest := tuple(name for name in names if name not in inner):
            yield Import(target, rest)


def wing_of(module: str) -> str:
    return module.split(".")[0]


def wings_that(module: str) -> set[str]:
    """The other wings from which a module imports; "" is the root."""
    return {wing_of(target) for target, _ in own_imports(module)} - {wing_of(module)}


def is_in(module: str, places: set[str]) -> bool:
    return any(module == place or module.startswith(f"{place}.") for place in places)


def test_the_root_holds_wings_and_nothing_else() -> None:
    found = {path.name for path in PACKAGE.iterdir()} - {"__pycache__"}
    assert found == {*WINGS, "__init__.py", "errors.py", "settings.py", "py.typed"}
    assert set(WINGS) <= PACKAGES
    assert {name_of(path.parent / "__init__.py") for path in MODULES.values()} == PACKAGES


def test_tests_mirror_the_wings() -> None:
    folders = {path.name for path in TESTS.iterdir() if path.is_dir()} - {"__pycache__"}
    assert folders == {*WINGS, "promises", "past"}
    for wing in WINGS:
        assert list((TESTS / wing).glob("test_*.py")), wing


@EVERY_MODULE
def test_imports_point_downwards(module: str) -> None:
    if module:
        for wing in wings_that(module) - {""}:
            assert LEVEL[wing] < LEVEL[wing_of(module)], f"{module} imports {wing}"
        assert "" not in wings_that(module) or wing_of(module) in KNOW_THE_ROOT


@EVERY_MODULE
def test_what_a_package_names_is_all_that_is_imported_from_outside(module: str) -> None:
    for target, names in own_imports(module):
        # The outermost package around the target that is not around the module as well.
        around = [".".join(target.split(".")[: i + 1]) for i in range(target.count(".") + 1)]
        border = next((name for name in around if name in PACKAGES and not is_in(module, {name})), None)
        if border is None:
            continue
        named: list[str] = import_module(f"shardpipe.{border}".rstrip(".")).__all__
        assert names or not module, f"{module} imports {target} as a whole: name what is used of it"
        assert target == border, f"{module} imports {target}: what others may use of {border} is named in its __init__"
        assert set(names) <= set(named), f"{module} imports {set(names) - set(named)}, which {border} does not name"


def test_there_is_no_circle_of_modules() -> None:
    graph = {module: {target for target, _ in own_imports(module)} for module in MODULES}
    order = list(TopologicalSorter(graph).static_order())
    assert set(order) == set(MODULES)


@EVERY_WING
def test_a_wing_says_what_goes_in_and_what_comes_out(wing: str) -> None:
    doc = import_module(f"shardpipe.{wing}").__doc__ or ""
    assert "In: " in doc
    assert "Out: " in doc


@pytest.mark.parametrize("wing", sorted(PACKAGES - {""}))
def test_a_package_gives_what_it_names(wing: str) -> None:
    """What its __init__ imports for type checkers, and gives when it is asked for, and names are the same."""
    package = import_module(f"shardpipe.{wing}")
    named = set(package.__all__)
    for home, names in own_imports(wing):
        for name in set(names) - ({"lazily"} if wing != "runtime" else set()):
            assert name in named, f"{name} of {home}"
            found = getattr(package, name)
            assert found is getattr(import_module(f"shardpipe.{home}"), name)
            assert not isinstance(found, ModuleType), f"{name} is a module of {wing}, too"
            named.remove(name)
    assert not named
    assert set(package.__all__) <= set(dir(package))
    with pytest.raises(AttributeError, match="nothing"):
        package.nothing  # noqa: B018


@EVERY_MODULE
def test_modules_are_short(module: str) -> None:
    assert len(MODULES[module].read_text().splitlines()) <= LINES_MAX


@pytest.mark.parametrize("package", sorted(PACKAGES), ids=lambda package: package or "shardpipe")
def test_folders_are_small(package: str) -> None:
    names = [path.stem for path in MODULES[package].parent.glob("*.py") if not path.stem.startswith("__")]
    assert len(names) <= MODULES_MAX, names


@EVERY_MODULE
def test_libraries_stay_where_they_belong(module: str) -> None:
    for name, _ in imports(module):
        places = ONLY_IN.get(name.split(".")[0])
        assert places is None or is_in(module, places), f"{module} imports {name}"


@pytest.mark.parametrize("module", [module for module in MODULES if wing_of(module) == "order"])
def test_order_is_pure(module: str) -> None:
    roots = {name.split(".")[0] for name, _ in imports(module)}
    assert roots <= PURE_MAY_IMPORT, f"{module} imports {roots - PURE_MAY_IMPORT}"
    assert wings_that(module) <= {"errors"}


@EVERY_MODULE
def test_the_write_side_does_not_know_the_read_side(module: str) -> None:
    if wing_of(module) in WRITE_SIDE:
        assert not wings_that(module) & READ_SIDE


@EVERY_MODULE
def test_train_reaches_data_through_the_loader_alone(module: str) -> None:
    for target, names in own_imports(module) if wing_of(module) == "train" else ():
        if (wing := wing_of(target)) not in ("", "train", "errors", "settings"):
            assert set(names) <= TRAIN_MAY_IMPORT.get(wing, set()), f"{module} imports {names} of {wing}"
            assert names


@EVERY_MODULE
def test_the_environment_is_read_at_the_entry_points_alone(module: str) -> None:
    nodes = list(ast.walk(ast.parse(MODULES[module].read_text())))
    reads = {node.attr for node in nodes if isinstance(node, ast.Attribute)}
    reads |= {alias.name for node in nodes if isinstance(node, ast.ImportFrom) for alias in node.names}
    assert not reads & {"environ", "environb", "getenv", "getenvb"} or module in ENTRY_POINTS


@pytest.mark.parametrize(
    "code",
    [
        "import shardpipe",
        *(f"import shardpipe.{wing}" for wing in WINGS),
        "from shardpipe.cli import app; app(['--help'], standalone_mode=False)",
        "from shardpipe.cli import app; app(['pack', '--help'], standalone_mode=False)",
        "from shardpipe.train.cli import main\ntry: main(['--help'])\nexcept SystemExit: pass",
    ],
)
def test_what_takes_long_to_import_is_imported_when_it_is_used(code: str) -> None:
    _run(f"{code}\nimport sys\nassert not {{'torch', 'pyarrow', 'fsspec', 's3fs'}} & set(sys.modules)")


def test_packing_does_without_torch(tmp_path: Path) -> None:
    """Every worker process of a pack imports this much."""
    data_list = write_list(tmp_path, 2)
    _run(
        "import sys\n"
        "from shardpipe.pack import PackOptions, index_tars, pack\n"
        f"pack({str(data_list)!r}, {str(tmp_path / 'out')!r}, options=PackOptions(sample_rate=8000, format='flac'))\n"
        "assert not {'torch', 'torchaudio'} & set(sys.modules)"
    )


def _run(code: str) -> Any:
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)
