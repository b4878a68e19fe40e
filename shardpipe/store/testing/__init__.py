"""Stores for tests: they count, slow down and break the reads of another one."""
