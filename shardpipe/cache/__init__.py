"""Shards kept on a local disk, and the bound on what they take."""
