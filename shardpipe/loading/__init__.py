"""Index, order and plan become tensors."""
