"""What a collate function makes, as JSON and arrays: lists, tuples, dicts, numbers, texts, tensors, and nothing that
would have to be run to be read.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import torch

__all__ = ["Put", "Take", "flattened", "rebuilt"]

Put: TypeAlias = Callable[[npt.NDArray[Any], bool], str]
"""Keeps an array, of bfloat16's bits if so said, and gives the name by which it is found again."""
Take: TypeAlias = Callable[[str], tuple[npt.NDArray[Any], bool]]

_DEEPEST = 50
_INTEGERS = 2**63


def flattened(value: Any, put: Put, depth: int = 0) -> Any:
    """The value as JSON can say it, arrays left with `put`. A list stands for itself; what else JSON has no word for is
    a dict of one name. Raises ValueError for what cannot travel.
    """
    if depth > _DEEPEST:
        raise ValueError("it is nested too deeply")
    kind = type(value)
    if value is None or kind is bool or kind is str:
        return value
    if kind is int:
        return value if -_INTEGERS <= value < _INTEGERS else {"int": str(value)}
    if kind is float:
        return value if math.isfinite(value) else {"float": repr(value)}
    if kind is list:
        return [flattened(one, put, depth + 1) for one in value]
    if kind is tuple:
        return {"tuple": [flattened(one, put, depth + 1) for one in value]}
    if kind is dict:
        return {"dict": [[flattened(k, put, depth + 1), flattened(v, put, depth + 1)] for k, v in value.items()]}
    if isinstance(value, torch.Tensor) and value.device.type == "cpu" and not value.is_sparse:
        tensor = value.detach().contiguous()
        halves = tensor.dtype == torch.bfloat16
        return {"tensor": put((tensor.view(torch.int16) if halves else tensor).numpy(), halves)}
    if isinstance(value, np.ndarray | np.generic) and value.dtype.kind in "biuf":
        return {"array" if isinstance(value, np.ndarray) else "scalar": put(np.asarray(value), False)}
    raise ValueError(f"it has a {kind.__module__}.{kind.__qualname__} in it")


def rebuilt(tree: Any, take: Take) -> Any:
    """What `flattened` was given. Raises ValueError for what that never makes."""
    if isinstance(tree, list):
        return [rebuilt(one, take) for one in tree]
    if not isinstance(tree, dict):
        return tree
    if len(tree) != 1:
        raise ValueError("what was collated is not as it should be")
    ((kind, inner),) = tree.items()
    if kind == "tuple":
        return tuple(rebuilt(one, take) for one in inner)
    if kind == "dict":
        return {rebuilt(key, take): rebuilt(value, take) for key, value in inner}
    if kind == "int":
        return int(inner)
    if kind == "float":
        return float(inner)
    array, halves = take(inner)
    if kind == "tensor":
        tensor = torch.from_numpy(array)
        return tensor.view(torch.bfloat16) if halves else tensor
    if kind not in ("array", "scalar"):
        raise ValueError(f"{kind!r} is nothing that was collated")
    return array if kind == "array" else array[()]
