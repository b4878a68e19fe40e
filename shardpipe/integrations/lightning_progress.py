"""Lightning's own count of batches, brought to what the data's place says when a run is gone on with."""

from __future__ import annotations

from typing import Any

from shardpipe.integrations.course import Course

__all__ = ["pass_length", "resumed_within_an_epoch"]


def pass_length(trainer: Any, course: Course) -> int:
    """Batches of this epoch of Lightning's, those that are done among them."""
    length, limit = course.batches + course.left(), trainer.limit_train_batches
    return length if isinstance(limit, float) else min(length, int(limit))


def resumed_within_an_epoch(trainer: Any, course: Course) -> bool:
    """Whether the checkpoint was saved within an epoch of Lightning's. Its progress is made that of the course: it may
    count batches whose gradients were lost, or those of another number of processes, and would end the epoch early.
    """
    fit, loop = trainer.fit_loop, trainer.fit_loop.epoch_loop
    epoch, batches = fit.epoch_progress, loop.batch_progress
    # A validation that was cut short begins anew, for its loaders do.
    loop.val_loop.batch_progress.current.reset()
    length = pass_length(trainer, course)
    more = course.batches < length
    if epoch.current.processed == epoch.current.ready:
        if not (more and course.batches) or batches.is_last_batch:
            # With max_steps, Lightning would take the finished epoch for one to go on with.
            epoch.total.completed, epoch.current.completed = epoch.total.processed, epoch.current.processed
            loop.restarting = False
            return False
        # max_steps has cut it short, and more of them are wanted now.
        for progress in (epoch.total, epoch.current):
            progress.processed = progress.completed = progress.ready - 1
        fit.restarting = True
    done, total, now = course.batches, batches.total, batches.current
    # Saved as the batch ended, before Lightning had counted it and validated.
    ending = now.ready == done == now.completed + 1
    agrees = now.ready == now.processed == done and (ending or now.completed == done)
    agrees &= total.ready == total.started == total.processed == total.completed + ending
    if not (more and agrees):
        if epoch.current.started == epoch.current.ready:  # else its batches are still those of the epoch before
            total.ready += done - now.ready
        now.ready = done
        for progress in (total, now):
            progress.started = progress.processed = progress.completed = progress.ready
    batches.is_last_batch = not more
    validation = loop.val_loop.batch_progress.total
    due = ending and _validates(trainer, now.ready, total.ready, length)
    if due or validation.ready != validation.completed:
        # As a validation that was cut short: others, Lightning would skip.
        validation.ready = validation.started = validation.completed + 1
        validation.processed = validation.completed
    return True


def _validates(trainer: Any, batches: int, total: int, length: int) -> bool:
    """Whether a validation follows so many batches of an epoch; see Lightning's _should_check_val_fx."""
    every, epochs = trainer.val_check_interval, trainer.check_val_every_n_epoch
    if not trainer.enable_validation or (epochs is not None and (trainer.current_epoch + 1) % epochs):
        return False
    if isinstance(every, float):
        every = max(1, int(length * every))
    elif isinstance(every, int) and epochs is not None:
        every = max(1, min(every, length))  # a shorter epoch is validated at its end
    return isinstance(every, int) and (total if epochs is None else batches) % every == 0
