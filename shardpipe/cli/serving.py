"""The command serve: batches for trainers elsewhere."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from shardpipe.cli.console import print_table
from shardpipe.errors import ConfigError
from shardpipe.runtime import cores
from shardpipe.settings import byte_size
from shardpipe.store import only_local

if TYPE_CHECKING:
    from shardpipe.serve import DatasetConfig, OpenDataset

__all__ = ["serve"]


def serve(
    data: Annotated[str | None, typer.Argument(metavar="[DIR]", help="A dataset's folder or URL.")] = None,
    name: Annotated[
        str | None, typer.Option(metavar="NAME", help="What clients call it; by default its folder's name.")
    ] = None,
    config: Annotated[
        str | None, typer.Option(metavar="FILE", help="A serve.yaml: several datasets, transforms, collates.")
    ] = None,
    bind: Annotated[str, typer.Option(metavar="HOST:PORT", help="Where to listen.")] = "127.0.0.1:7070",
    threads: Annotated[
        int | None, typer.Option(help="That make batches.", min=1, show_default="the cores that it may use")
    ] = None,
    memory: Annotated[str, typer.Option(help="Most bytes of batches being made or sent.")] = "1GiB",
    keep: Annotated[str, typer.Option(help="Bytes of batches kept for others that want the same.")] = "512MiB",
    tls_cert: Annotated[str | None, typer.Option(metavar="FILE", help="Certificate, in PEM.")] = None,
    tls_key: Annotated[str | None, typer.Option(metavar="FILE", help="Its key.")] = None,
    token_file: Annotated[
        str | None, typer.Option(metavar="FILE", help="One token a line, two at most, of which clients show one.")
    ] = None,
    cache_dir: Annotated[
        str | None, typer.Option(metavar="DIR", help="Local folder for what was read of datasets elsewhere.")
    ] = None,
    cache_bytes: Annotated[str | None, typer.Option(help="The most that it takes of its disk, like 200GiB.")] = None,
    check: Annotated[bool, typer.Option("--check", help="Say whether all of that can be had, and end.")] = False,
    demo: Annotated[
        bool, typer.Option("--demo", help="Train by two replicas that are killed and frozen, and compare.")
    ] = False,
    out: Annotated[
        str | None,
        typer.Option("-o", "--out", metavar="DIR", help="Folder for the demo.", show_default="runs/serve-demo"),
    ] = None,
) -> None:
    """Make batches for trainers elsewhere: ShardLoader("shardpipe+http://127.0.0.1:7070/NAME")."""
    from shardpipe.serve import ServeConfig

    if demo:
        _demo(out, data, config)
        return
    if out is not None:
        raise ConfigError("out", out, "it is the folder of --demo")
    settings = ServeConfig(
        datasets=_datasets(data, name, config),
        bind=bind,
        threads=threads or cores(),
        memory_bytes=byte_size("memory", memory),
        keep_bytes=byte_size("keep", keep),
        tls_cert=tls_cert,
        tls_key=tls_key,
        token_file=token_file,
        cache_dir=cache_dir,
        cache_bytes=None if cache_bytes is None else byte_size("cache_bytes", cache_bytes),
    )
    from shardpipe.serve import open_datasets, serve, tls_of  # torch, which this needs, takes seconds to import

    if check:
        tls_of(settings)
        found = open_datasets(settings)
        rows = {name: f"{one.index.num_samples:,} samples, {one.index.fingerprint[:16]}" for name, one in found.items()}
        print_table("It can be served", rows)
        return

    def started(url: str, found: Mapping[str, OpenDataset]) -> None:
        for name, one in found.items():
            print(
                f"shardpipe+{url}/{name}: {one.index.num_samples:,} samples of {one.index.store.url}", file=sys.stderr
            )
        print(f"serving at {url}", file=sys.stderr, flush=True)

    serve(settings, started=started)


def _demo(out: str | None, data: str | None, config: str | None) -> None:
    from shardpipe.demo import run_service_demo

    for option, value in (("DIR", data), ("config", config)):
        if value is not None:
            raise ConfigError(option, value, "--demo serves a dataset of its own")
    if not run_service_demo(Path(only_local("out", out or "runs/serve-demo"))).passed:
        raise typer.Exit(1)


def _datasets(data: str | None, name: str | None, config: str | None) -> dict[str, DatasetConfig]:
    from shardpipe.serve import DatasetConfig, datasets_of

    if (data is None) == (config is None):
        raise ConfigError("DIR", data, "either it or --config must say what to serve")
    if config is not None:
        if name is not None:
            raise ConfigError("name", name, "the datasets of --config have names already")
        return datasets_of(config)
    assert data is not None
    return {name or Path(data.rstrip("/")).name or "data": DatasetConfig(data=data)}
