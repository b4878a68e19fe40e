"""Stores and uploads by fsspec."""
