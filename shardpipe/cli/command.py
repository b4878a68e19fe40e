"""The command line as a whole: its commands, and how they end.

Every command calls one function and prints what it returns. It imports that function when it runs, so that --help comes
at once, without torch and pyarrow.
"""

from __future__ import annotations

import sys
from io import TextIOWrapper
from typing import Annotated

import typer

from shardpipe import __version__
from shardpipe.cli.demo import demo
from shardpipe.cli.doctor import doctor
from shardpipe.cli.looking import info, verify
from shardpipe.cli.making import index, pack
from shardpipe.cli.plans import at, plan, where
from shardpipe.cli.serving import serve
from shardpipe.cli.top import top
from shardpipe.errors import ConfigError, ShardpipeError

__all__ = ["app", "main"]

app = typer.Typer(
    help="Tar shards for speech training that stops anywhere and goes on as if it had never stopped.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


@app.callback(invoke_without_command=True)
def version(show: Annotated[bool, typer.Option("--version", help="Print the version.")] = False) -> None:
    if show:
        print(__version__)
        raise typer.Exit


for command in (pack, index, verify, info, at, where, plan, doctor, serve, top, demo):
    app.command()(command)


def main() -> None:
    """Entry point: exit code 0 done, 1 the data is at fault, 2 the command line is."""
    if isinstance(sys.stdout, TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # keys are of any script, and a terminal's locale may not be
    try:
        app()
    except ConfigError as error:
        print(f"shardpipe: {error}", file=sys.stderr)
        raise SystemExit(2) from None
    except ShardpipeError as error:
        print(f"shardpipe: {error}", file=sys.stderr)
        raise SystemExit(1) from None
