"""Lightning: a LightningDataModule whose place in the run is in every checkpoint of the Trainer's."""

from __future__ import annotations

import inspect
import os
from collections.abc import Iterator, Mapping
from typing import Any, TypeAlias

try:
    from lightning.pytorch import LightningDataModule
except ModuleNotFoundError as error:
    raise ImportError("shardpipe.integrations.lightning needs Lightning: pip install 'shardpipe[lightning]'") from error

from shardpipe import ShardLoader
from shardpipe.errors import ConfigError
from shardpipe.integrations.course import Course
from shardpipe.settings import check
from shardpipe.store import Store

__all__ = ["ShardData"]

_Data: TypeAlias = str | os.PathLike[str] | Store

_FROM_THE_TRAINER = ("rank", "world_size")
_OF_TRAINING = ("sub_epochs", "resume_samples", "lanes", "transform")
"""Options that validation sets do not share."""


class ShardData(LightningDataModule):
    """Training data, and sets to validate and test on, for `trainer.fit(model, data, ckpt_path=...)`.

    A checkpoint holds the place behind the last batch that is in its weights, whenever it was saved, and a resume goes
    on there, on any number of processes: an accumulation that a stop has cut short is trained again. A Lightning epoch
    is a sub-epoch of the data, or as many batches of it as `limit_train_batches` says; then the next one goes on there.
    What a training step draws at random (torch, numpy, random) is keyed by its place and rank.

    data: what ShardLoader takes. valid, test: the same, or a mapping of names to several; `valid_names`, `test_names`
        are the names by Lightning's dataloader_idx. Each is one whole pass without shuffling.
    valid_options: options of theirs that differ from those of the training data. Of these they have all but
        sub_epochs, resume_samples, lanes and transform.
    loader_options: ShardLoader's, but for rank and world_size, which the trainer says.

    Raises, when the trainer sets it up or begins, what ShardLoader raises, and ConfigError for a checkpoint without a
    place, for `overfit_batches`, and for a training_step that takes a dataloader_iter: it fetches ahead, and nobody
    could tell what it has trained on.
    """

    def __init__(
        self,
        data: _Data,
        *,
        valid: _Data | Mapping[str, _Data] | None = None,
        test: _Data | Mapping[str, _Data] | None = None,
        valid_options: Mapping[str, Any] | None = None,
        **loader_options: Any,
    ) -> None:
        super().__init__()
        for name in _FROM_THE_TRAINER:
            check(name, loader_options.get(name), name not in loader_options, "the trainer says it")
        check(
            "repeat",
            loader_options.get("repeat"),
            "repeat" not in loader_options,
            "training data repeat, and no others",
        )
        self._data = data
        self._options = loader_options
        self._evaluated = {"valid": _by_name(valid), "test": _by_name(test)}
        self._evaluation = {name: value for name, value in loader_options.items() if name not in _OF_TRAINING}
        self._evaluation |= {"shuffle": False, **(valid_options or {})}
        self._loaders: dict[tuple[str, str, int, int], ShardLoader] = {}
        self._course: Course | None = None
        self._restored: dict[str, Any] | None = None
        self._begun = False
        self.valid_names = tuple(self._evaluated["valid"])
        self.test_names = tuple(self._evaluated["test"])

    @property
    def loader(self) -> ShardLoader:
        """That of the training data, once the trainer has asked for it."""
        check("loader", None, self._course is not None, "it is made when the trainer begins to fit")
        assert self._course is not None
        return self._course.loader

    def setup(self, stage: str) -> None:
        if stage != "fit":
            return
        trainer, module = self._fitting, self._fitting.lightning_module
        rule = "every epoch would get other batches: pack those few samples, or set limit_train_batches"
        check("overfit_batches", trainer.overfit_batches, not trainer.overfit_batches, rule)
        takes = inspect.signature(module.training_step).parameters
        rule = "it fetches ahead, and nobody could tell which batches are trained on: take a batch"
        check("training_step", type(module).__name__, "dataloader_iter" not in takes, rule)
        # Epochs by seconds differ in length, and Lightning asks for it when it loads the data.
        trainer.reload_dataloaders_every_n_epochs = 1
        self._restored, self._begun = None, False
        if not trainer.fit_loop.epoch_progress.total.ready:
            self.teardown(stage)
            self._course = None

    def train_dataloader(self) -> _Pass:
        trainer = self._fitting
        if self._course is None:
            rank, world_size = _ranks(trainer)
            loader = ShardLoader(self._data, rank=rank, world_size=world_size, **self._options)
            self._course = Course(loader, rank=rank, world_size=world_size)
        course, state = self._course, self._restored
        limit = trainer.limit_train_batches
        if isinstance(limit, float) and limit < 1 and (batches := int(len(course.loader) * limit)):
            # Of what is left of an epoch it would be less and less.
            trainer.limit_train_batches = batches
        if state is not None:
            course.restore(state)
        elif trainer.ckpt_path is not None and not self._begun and not self._options.get("resume_samples"):
            fix = "Resume from another one, or give resume_samples=, the samples that its run had consumed."
            raise ConfigError("ckpt_path", str(trainer.ckpt_path), "ShardData has saved no place there", fix=fix)
        if state is None or not _resumed_within_an_epoch(trainer, course):
            stay = bool(trainer.strategy.handles_gradient_accumulation)
            course.begin_pass(trainer.global_step, gradients_stay=stay)
        self._restored, self._begun = None, True
        return _Pass(course, trainer)

    def val_dataloader(self) -> list[ShardLoader]:
        return self._evaluation_loaders("valid")

    def test_dataloader(self) -> list[ShardLoader]:
        return self._evaluation_loaders("test")

    def state_dict(self) -> dict[str, Any]:
        return self._restored or {} if self._course is None else self._course.state(self._fitting.global_step)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._restored = state_dict

    def teardown(self, stage: str) -> None:
        if stage == "fit" and self._course is not None:
            self._course.close()

    @property
    def _fitting(self) -> Any:
        """The trainer, whose types leave out much of what it documents."""
        assert self.trainer is not None
        return self.trainer

    def _evaluation_loaders(self, purpose: str) -> list[ShardLoader]:
        rank, world_size = _ranks(self._fitting)
        loaders = []
        for name, data in self._evaluated[purpose].items():
            this = (purpose, name, rank, world_size)
            if this not in self._loaders:
                options = {**self._evaluation, "rank": rank, "world_size": world_size}
                self._loaders[this] = ShardLoader(data, repeat=False, **options)
            loaders.append(self._loaders[this])
        return loaders


class _Pass:
    """An epoch of Lightning's."""

    def __init__(self, course: Course, trainer: Any) -> None:
        self._course = course
        self._trainer = trainer
        self._length = _length(trainer, course)

    def __len__(self) -> int:
        return self._length

    def __iter__(self) -> Iterator[Any]:
        for batch in self._course.fetch():
            self._course.train(self._trainer.global_step)
            yield batch

    # Lightning warns of a loader without them that it cannot resume. It gives a state back in mid-epoch only, and keeps
    # none of what is trained on later: ShardData has it.
    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        pass


def _length(trainer: Any, course: Course) -> int:
    """Batches of this epoch of Lightning's, those that are done among them."""
    length, limit = course.batches + course.left(), trainer.limit_train_batches
    return length if isinstance(limit, float) else min(length, int(limit))


def _resumed_within_an_epoch(trainer: Any, course: Course) -> bool:
    """Whether the checkpoint was saved within an epoch of Lightning's. Its progress is made that of the course: it may
    count batches whose gradients were lost, or those of another number of processes, and would end the epoch early.
    """
    fit, loop = trainer.fit_loop, trainer.fit_loop.epoch_loop
    epoch, batches = fit.epoch_progress, loop.batch_progress
    # A validation that was cut short begins anew, for its loaders do.
    loop.val_loop.batch_progress.current.reset()
    more = course.batches < _length(trainer, course)
    if epoch.current.processed == epoch.current.ready:
        if not (more and course.batches):
            # With max_steps, Lightning would take the finished epoch for one to go on with.
            epoch.total.completed, epoch.current.completed = epoch.total.processed, epoch.current.processed
            loop.restarting = False
            return False
        # max_steps has cut it short, and more of them are wanted now.
        for progress in (epoch.total, epoch.current):
            progress.processed = progress.completed = progress.ready - 1
        fit.restarting = True
    ready, completed = batches.current.ready, batches.current.completed
    agrees = ready == batches.current.processed == course.batches and completed in (ready, ready - 1)
    if not (more and agrees):
        batches.total.ready += course.batches - ready
        batches.current.ready = course.batches
        for progress in (batches.total, batches.current):
            progress.started = progress.processed = progress.completed = progress.ready
    batches.is_last_batch = not more
    return True


def _ranks(trainer: Any) -> tuple[int, int]:
    found = trainer.distributed_sampler_kwargs
    return (0, 1) if found is None else (int(found["rank"]), int(found["num_replicas"]))


def _by_name(data: _Data | Mapping[str, _Data] | None) -> dict[str, _Data]:
    if data is None:
        return {}
    return dict(data) if isinstance(data, Mapping) else {"": data}
