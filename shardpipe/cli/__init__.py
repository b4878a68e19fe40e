"""The `shardpipe` command.

In: a command line. Out: what a person reads, or one JSON document; exit code 0, 1 if the data is at fault, 2 if the
command line is. One module a group of commands; `options` has the options that several share, `console` how they print.
"""

from shardpipe.cli.command import app, main

__all__ = ["app", "main"]
