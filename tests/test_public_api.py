"""The public names, so that a change of them is deliberate."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
import re

import pytest

import shardpipe
import shardpipe.store

MODULES = sorted(m.name for m in pkgutil.walk_packages(shardpipe.__path__, "shardpipe.") if "__main__" not in m.name)


def test_the_package_exports() -> None:
    assert shardpipe.__all__ == ["Batch", "Place", "Sample", "ShardLoader", "__version__"]
    for name in shardpipe.__all__:
        assert getattr(shardpipe, name) is not None
    with pytest.raises(AttributeError, match="nothing"):
        shardpipe.nothing  # noqa: B018


def test_the_store_offers() -> None:
    docstring = inspect.getdoc(shardpipe.store) or ""
    said = docstring.partition("Public, for stores, loops and tests of others: ")[2].partition(". The other")[0]
    public = re.split(r",\s+", said)
    assert public == [
        *("Store", "Stat", "Over", "open_store", "close", "LocalStore", "FsspecStore", "Retry", "RetryingStore"),
        *("CountingStore", "FailingStore", "Fault", "SlowStore", "abandon_when", "abandoned"),
    ]
    for name in public:
        assert getattr(shardpipe.store, name) is not None
    assert set(public) <= set(shardpipe.store.__all__)


def test_the_loader_takes() -> None:
    parameters = list(inspect.signature(shardpipe.ShardLoader).parameters.values())
    assert [p.name for p in parameters] == [
        *("data", "batch_size", "batch_seconds", "seed", "shuffle", "window", "lanes", "sub_epochs"),
        *("sub_epoch_samples", "rank", "world_size", "resume_samples", "repeat", "batches_per_step"),
        *("min_seconds", "max_seconds", "transform", "collate", "dtype", "channels", "sample_rate", "threads"),
        *("workers", "prefetch", "prefetch_bytes", "on_error", "cache_dir", "cache_bytes", "schemes", "device"),
        *("servers", "local", "token_file", "tls_ca", "digests"),
    ]
    assert all(p.kind is p.KEYWORD_ONLY for p in parameters[1:])


def test_the_loader_offers() -> None:
    offered = {name for name in dir(shardpipe.ShardLoader) if not name.startswith("_")}
    assert offered == {
        *("batches", "batches_left", "consumed_samples", "dataset", "default_ranks", "epoch", "lengths"),
        *("load_state_dict", "num_excluded", "num_samples", "repeat", "sample_rate", "state_dict"),
        *("servers", "service", "sub_epoch", "sub_epochs", "texts"),
    }


def test_a_batch_holds() -> None:
    assert list(shardpipe.Batch.__dataclass_fields__) == [
        *(
            "audio",
            "lengths",
            "weights",
            "keys",
            "ordinals",
            "texts",
            "extras",
            "sample_rate",
            "epoch",
            "consumed_samples",
            "state",
        ),
        *("ends_step", "seed"),
    ]


@pytest.mark.parametrize("name", MODULES)
def test_modules_name_what_they_export(name: str) -> None:
    module = importlib.import_module(name)
    if not inspect.getsource(module).count("\ndef ") + inspect.getsource(module).count("\nclass "):
        return
    assert module.__all__, name
    assert list(module.__all__) == sorted(module.__all__, key=_as_ruff_sorts), name
    for exported in module.__all__:
        assert hasattr(module, exported), f"{name}.{exported}"


def _as_ruff_sorts(name: str) -> tuple[int, str]:
    return (0 if name.isupper() else 1 if name[0].isupper() else 2), name
