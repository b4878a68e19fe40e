"""Tar shards for speech training that stops anywhere and goes on as if it had never stopped."""

__version__ = "0.1.0"
