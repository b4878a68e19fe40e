"""What lies on disk: shards, their rows, the manifest."""
