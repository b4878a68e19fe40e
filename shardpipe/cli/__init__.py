"""The `shardpipe` command."""

from shardpipe.cli.commands import app, main

__all__ = ["app", "main"]
