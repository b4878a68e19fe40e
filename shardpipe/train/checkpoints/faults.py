"""What went wrong where torch.distributed.checkpoint wrote or read, in any of the processes: one StoreError."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from torch.distributed.checkpoint.api import CheckpointException

from shardpipe.errors import StoreError

__all__ = ["line_of", "telling"]


@contextmanager
def telling(otherwise: Callable[[str], StoreError]) -> Iterator[None]:
    """Around its calls: raises the StoreError that one of the processes has raised, or what `otherwise` makes of the
    line that another error says.
    """
    try:
        yield
    except (CheckpointException, Exception) as error:  # the first is none of the second
        failures = list(error.failures.values()) if isinstance(error, CheckpointException) else []
        errors = [failure[0] for failure in failures] or [error]
        ours = next((each for each in errors if isinstance(each, StoreError)), None)
        raise (ours or otherwise(line_of(errors[0]))) from error


def line_of(error: BaseException) -> str:
    """What the system said, where another's own error hides that."""
    inner: BaseException | None = error
    while inner is not None and not isinstance(inner, OSError):
        inner = inner.__cause__ or inner.__context__
    return (str(inner or error).splitlines() or [type(error).__name__])[0]
