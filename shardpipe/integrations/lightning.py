"""Lightning: a LightningDataModule whose place in the run is in every checkpoint of the Trainer's."""

from __future__ import annotations

import inspect
import os
from collections.abc import Iterator, Mapping
from typing import Any, TypeAlias
from weakref import WeakKeyDictionary

try:
    from lightning.fabric.plugins.environments.torchelastic import TorchElasticEnvironment
    from lightning.pytorch import LightningDataModule
    from lightning.pytorch.callbacks import GradientAccumulationScheduler
    from lightning.pytorch.utilities.model_helpers import is_overridden
except ModuleNotFoundError as error:
    raise ImportError("shardpipe.integrations.lightning needs Lightning: pip install 'shardpipe[lightning]'") from error

from shardpipe import ShardLoader
from shardpipe.errors import ConfigError
from shardpipe.integrations.course import Course, check_launched
from shardpipe.integrations.lightning_progress import pass_length, resumed_within_an_epoch
from shardpipe.settings import check
from shardpipe.store import Store

__all__ = ["ShardData"]

_Data: TypeAlias = str | os.PathLike[str] | Store

_FROM_THE_TRAINER = ("rank", "world_size")
_BATCHING = {"batch_size", "batch_seconds"}
_OF_TRAINING = ("sub_epochs", "sub_epoch_samples", "resume_samples", "lanes", "transform", "servers", "local")
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
        sub_epochs, sub_epoch_samples, resume_samples, lanes, transform, servers and local.
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
        evaluation = {name: value for name, value in loader_options.items() if name not in _OF_TRAINING}
        if valid_options and _BATCHING & valid_options.keys():
            evaluation = {name: value for name, value in evaluation.items() if name not in _BATCHING}
        for options in (loader_options, valid_options or {}):
            for name in _FROM_THE_TRAINER:
                check(name, options.get(name), name not in options, "the trainer says it")
            check("repeat", options.get("repeat"), "repeat" not in options, "training data repeat, and no others")
        self._data = data
        self._options = loader_options
        self._evaluated = {"valid": _by_name(valid), "test": _by_name(test)}
        self._evaluation = {"shuffle": False, **evaluation, **(valid_options or {})}
        self._loaders: dict[tuple[str, str, int, int], ShardLoader] = {}
        self._courses: WeakKeyDictionary[Any, Course] = WeakKeyDictionary()
        self._settings: WeakKeyDictionary[Any, dict[str, Any]] = WeakKeyDictionary()
        """What trainers had of the settings that are changed while they fit."""
        self._restored: dict[str, Any] | None = None
        self._begun = False
        """Whether the trainer has asked for the data since it was set up."""
        self._validated_every: int | None = None
        self.valid_names = tuple(self._evaluated["valid"])
        self.test_names = tuple(self._evaluated["test"])

    @property
    def loader(self) -> ShardLoader:
        """That of the training data, of the trainer that has this."""
        return self._course.loader

    def setup(self, stage: str) -> None:
        if stage != "fit":
            return
        trainer, module = self._its_trainer, self._its_trainer.lightning_module
        rule = "every epoch would get other batches: pack those few samples, or set limit_train_batches"
        check("overfit_batches", trainer.overfit_batches, not trainer.overfit_batches, rule)
        takes = inspect.signature(module.training_step).parameters
        rule = "it fetches ahead, and nobody could tell which batches are trained on: take a batch"
        check("training_step", type(module).__name__, "dataloader_iter" not in takes, rule)
        self._restore_settings()
        # Epochs by seconds differ in length, and Lightning asks for it when it loads the data.
        self._set("reload_dataloaders_every_n_epochs", 1)
        every = trainer.val_check_interval
        self._validated_every = every if isinstance(every, int) and trainer.check_val_every_n_epoch else None
        self._restored, self._begun = None, False

    def train_dataloader(self) -> _Pass:
        trainer, course, state = self._its_trainer, self._course, self._restored
        limit = trainer.limit_train_batches
        if isinstance(limit, float) and limit < 1 and (batches := int(len(course.loader) * limit)):
            # Of what is left of an epoch it would be less and less.
            self._set("limit_train_batches", batches)
        if state is not None:
            course.restore(state)
        elif not self._begun and trainer.ckpt_path is not None and not self._options.get("resume_samples"):
            rule = f"{type(self).__name__} has saved no place there"
            fix = "Resume from another one, or give resume_samples=, the samples that its run had consumed."
            raise ConfigError("ckpt_path", str(trainer.ckpt_path), rule, fix=fix)
        if state is None or not resumed_within_an_epoch(trainer, course):
            by_hand = not trainer.lightning_module.automatic_optimization
            course.settle(trainer.global_step)
            if by_hand and self._begun and not course.stepped:
                rule = "no step was taken in a whole epoch, by which the place in the run is told"
                raise ConfigError("optimizers", None, rule, fix="Step once an epoch at least, by self.optimizers().")
            stay = by_hand or bool(trainer.strategy.handles_gradient_accumulation)
            course.begin_pass(trainer.global_step, gradients_stay=stay)
        length = pass_length(trainer, course)
        if self._validated_every is not None and (self._begun or state is not None):
            # Where an epoch is shorter than that, its end is what is left to validate at.
            self._set("val_check_interval", max(1, min(self._validated_every, length)))
        self._restored, self._begun = None, True
        return _Pass(course, trainer, length)

    def val_dataloader(self) -> Any:
        return self._evaluation_loaders("valid", "val_dataloader")

    def test_dataloader(self) -> Any:
        return self._evaluation_loaders("test", "test_dataloader")

    def state_dict(self) -> dict[str, Any]:
        trainer = self._its_trainer
        if trainer.state.fn == "fit" or trainer in self._courses:
            return self._course.state(trainer.global_step)
        return self._restored or {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._restored = state_dict

    def teardown(self, stage: str) -> None:
        if stage == "fit" and self._its_trainer in self._courses:
            self._course.close()
            self._restore_settings()

    def _set(self, name: str, value: Any) -> None:
        """Changes a setting of the trainer's until it has fitted."""
        trainer = self._its_trainer
        self._settings.setdefault(trainer, {}).setdefault(name, getattr(trainer, name))
        setattr(trainer, name, value)

    def _restore_settings(self) -> None:
        for name, value in self._settings.pop(self._its_trainer, {}).items():
            setattr(self._its_trainer, name, value)

    @property
    def _its_trainer(self) -> Any:
        """The trainer, whose types leave out much of what it documents."""
        rule = "it is not there yet: give ShardData itself to the trainer, fit(model, data), not what it loads from"
        check("trainer", None, self.trainer is not None, rule)
        return self.trainer

    @property
    def _course(self) -> Course:
        """The run of this trainer: another one begins anew."""
        trainer = self._its_trainer
        if trainer not in self._courses:
            rank, world_size = _ranks(trainer)
            loader = ShardLoader(self._data, rank=rank, world_size=world_size, **self._options)
            self._courses[trainer] = Course(loader, rank=rank, world_size=world_size)
        return self._courses[trainer]

    def _evaluation_loaders(self, purpose: str, hook: str) -> Any:
        trainer = self._its_trainer
        if not self._evaluated[purpose] and is_overridden(hook, trainer.lightning_module):
            return getattr(trainer.lightning_module, hook)()
        rank, world_size = _ranks(trainer)
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

    def __init__(self, course: Course, trainer: Any, length: int) -> None:
        self._course = course
        self._trainer = trainer
        self._length = length

    def __len__(self) -> int:
        return self._length

    def __iter__(self) -> Iterator[Any]:
        for callback in self._trainer.callbacks:
            if isinstance(callback, GradientAccumulationScheduler):
                callback.on_train_epoch_start(self._trainer)  # which Lightning leaves out where it goes on in an epoch
        for batch in self._course.fetch():
            self._course.train(self._trainer.global_step)
            yield batch

    # Lightning warns of a loader without them that it cannot resume. It gives a state back in mid-epoch only, and keeps
    # none of what is trained on later: ShardData has it.
    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        pass


def _ranks(trainer: Any) -> tuple[int, int]:
    found = trainer.distributed_sampler_kwargs
    if found is not None:
        return int(found["rank"]), int(found["num_replicas"])
    if TorchElasticEnvironment.detect():
        launched = TorchElasticEnvironment().world_size()
        check_launched(launched, 1, f'Give Trainer(devices=..., strategy="ddp"), devices that make {launched}.')
    return 0, 1


def _by_name(data: _Data | Mapping[str, _Data] | None) -> dict[str, _Data]:
    if data is None:
        return {}
    return dict(data) if isinstance(data, Mapping) else {"": data}
