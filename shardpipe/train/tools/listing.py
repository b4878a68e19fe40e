"""Which checkpoints a run has, and what they say of themselves."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from shardpipe.errors import StoreError
from shardpipe.settings import size_text
from shardpipe.train.checkpoints import Checkpoint, Checkpoints, kept, looks_whole, sets_in
from shardpipe.train.run import checkpoints_of
from shardpipe.train.validation import FIGURES, ONLY, named, shown

__all__ = ["list_checkpoints"]

_HEADS = ("samples", "epoch", "sub-epoch", "steps", "size")


def list_checkpoints(run: str, say: Callable[[str], None], *, verify: bool) -> bool:
    """Says a line for each checkpoint of a run, ascending: count, the epoch and sub-epoch in which it goes on, steps,
    size, figures of its evaluation, and why it is kept. Returns whether all of them are as they were written.

    Sizes of files are looked at; with `verify` they are read, and their checksums compared. Raises StoreError where
    there are none.
    """
    checkpoints = checkpoints_of(run)
    counts = checkpoints.counts()
    if not counts:
        fix = "Name a run's folder, or the place of its checkpoints."
        raise StoreError("there are no checkpoints", url=checkpoints.url, fix=fix)
    found = {count: _looked_at(checkpoints, count, verify=verify) for count in counts}
    there = checkpoints.counts()  # the run may have deleted some meanwhile
    whole = {count: each for count, each in found.items() if isinstance(each, Checkpoint) and count in there}
    faults = {count: each for count, each in found.items() if isinstance(each, str) and count in there}
    reasons = kept(whole, checkpoints.keep)
    names = dict.fromkeys(name for count in sorted(whole) for name in whole[count].valid or {})
    figures = list(names) or [named(ONLY, name) for name in FIGURES]
    sets = sets_in(whole)
    rows: list[tuple[str, ...]] = [(*_HEADS, *(shown(name, sets) for name in figures), "kept")]
    for count in sorted(whole | faults):
        if count in whole:
            rows.append(
                (*_facts(whole[count], figures), ", ".join(reasons.get(count, ["until the next one is saved"])))
            )
        else:
            rows.append((f"{count:,}", *[""] * (len(rows[0]) - 2), faults[count]))
    widths = [max(map(len, column)) for column in zip(*rows)]
    for row in rows:
        say("  ".join([*(cell.rjust(width) for cell, width in zip(row[:-1], widths)), row[-1]]))
    if verify and not faults:
        read = sum(checkpoint.size for checkpoint in whole.values())
        say(f"all {len(whole)} are as they were written: {size_text(read)} read")
    return not faults


def _looked_at(checkpoints: Checkpoints, count: int, *, verify: bool) -> Checkpoint | str:
    """What the checkpoint there says, or what is wrong with it."""
    try:
        found = checkpoints.read(count) if verify else checkpoints.peek(count)
        return found if verify or looks_whole(found) else "is damaged: files are missing, or have another size"
    except StoreError as error:
        if error.transient:
            raise
        return error.what


def _facts(checkpoint: Checkpoint, figures: Sequence[str]) -> tuple[str, ...]:
    place = (checkpoint.epoch, checkpoint.sub_epoch)
    valid = checkpoint.valid or {}
    return (
        f"{checkpoint.consumed_samples:,}",
        *("-" if number is None else str(number) for number in place),
        f"{checkpoint.progress.steps:,}",
        size_text(checkpoint.size),
        *("-" if (figure := valid.get(name)) is None else _shown(name, figure) for name in figures),
    )


def _shown(name: str, figure: float) -> str:
    return f"{figure:.4f}" if name.endswith("loss") else f"{figure:.2%}"
