"""The command that shows it all."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from shardpipe.store import only_local

__all__ = ["demo"]


def demo(
    out: Annotated[str, typer.Option("-o", "--out", metavar="DIR", help="Folder for what it makes.")] = "runs/demo",
) -> None:
    """Pack, train, kill -9 in mid-epoch, resume, and compare with an unbroken run."""
    from shardpipe.demo import run_demo

    if not run_demo(Path(only_local("out", out))).passed:
        raise typer.Exit(1)
