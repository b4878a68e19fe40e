"""Threads and processes: work in parallel, and how it ends."""
