"""transformers: what makes a Trainer train on a ShardLoader, and save its place with each of its checkpoints."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

try:
    from accelerate.utils import get_int_from_env
    from transformers import TrainerCallback
    from transformers.trainer_callback import ExportableState
except ModuleNotFoundError as error:
    fix = "pip install 'shardpipe[transformers]'"
    raise ImportError(f"shardpipe.integrations.transformers needs transformers and accelerate: {fix}") from error

from shardpipe import ShardLoader
from shardpipe.errors import ConfigError
from shardpipe.integrations.accelerate import PreparedLoader
from shardpipe.integrations.course import Course, check_launched
from shardpipe.integrations.transformers_evaluation import EvaluationMixin, check_ranks
from shardpipe.settings import check

__all__ = ["ShardTrainerMixin"]


class ShardPlace(TrainerCallback, ExportableState):
    """Carries the place into a checkpoint's trainer_state.json, under its own name."""

    def __init__(self) -> None:
        self.place: dict[str, Any] | None = None

    def state(self) -> dict[str, Any]:
        return {"args": {}, "attributes": {"place": self.place}}


class ShardTrainerMixin(EvaluationMixin):
    """Put before Trainer, or a class of its kind: `class T(ShardTrainerMixin, Trainer)`.

    `T(model, args, train_loader=ShardLoader(...), eval_loader=...)` takes all else that Trainer takes, but for
    data_collator (which is the loader's `collate`), train_dataset and eval_dataset. An epoch is a sub-epoch of the
    data, `num_train_epochs` counts them from where the loader stands, and ranks come from the Trainer unless the loader
    was given some. What a training step draws at random (torch, numpy, random) is keyed by its place and rank. Batches
    are what the loader makes: a mapping whose keys are the model's arguments, by a `collate`, or for a compute_loss.

    train_loader: a ShardLoader. eval_loader: one with repeat=False, or a dict of names to several. By the `weights` of
        batches, evaluations leave out what only fills the last step; by `lengths` and `weights`, tokens are counted.

    Raises ConfigError for auto_find_batch_size, for a checkpoint that holds no place, for ranks that share a model
    where the loader was not told which of them share batches, and for inputs among include_for_metrics.
    """

    def __init__(
        self,
        *args: Any,
        train_loader: ShardLoader | None = None,
        eval_loader: ShardLoader | dict[str, ShardLoader] | None = None,
        **kwargs: Any,
    ) -> None:
        for name in ("data_collator", "train_dataset", "eval_dataset"):
            check(name, kwargs.get(name), kwargs.get(name) is None, "batches come from train_loader and eval_loader")
        check("(model, args, ...)", len(args), len(args) <= 2, "all but model and args are given by name")
        super().__init__(*args, eval_loader=eval_loader, **kwargs)
        trainer = self._trainer
        launched = get_int_from_env(["WORLD_SIZE"], 1)
        check_launched(launched, trainer.args.world_size, "Without a GPU, give TrainingArguments(use_cpu=True).")
        rule = "it would change the size of batches that the loader plans"
        check("auto_find_batch_size", True, not trainer.args.auto_find_batch_size, rule)
        # Nothing is to be skipped: the loader begins where it is to go on.
        trainer.args.ignore_data_skip = True
        trainer.add_callback(ShardPlace())
        self._course: Course | None = None
        self._began_at = self._batches = self._tokens = 0
        if train_loader is not None:
            rank, world_size = trainer.args.process_index, trainer.args.world_size
            self._course = Course(train_loader, rank=rank, world_size=world_size)
            check_ranks(self._trainer, train_loader)

    def get_train_dataloader(self) -> Any:
        return _Pass(self._running)

    def num_examples(self, dataloader: _Pass | PreparedLoader) -> int:
        return dataloader.loader.num_samples

    def set_initial_training_values(self, args: Any, dataloader: Any, *rest: Any) -> tuple[Any, ...]:
        values = super().set_initial_training_values(args, dataloader, *rest)  # type: ignore[misc]
        batch_size, max_steps = values[4], args.max_steps
        course = self._running
        if max_steps > 0:
            # Nobody knows how many it takes: each has a step at least.
            epochs = self._epoch + max_steps - course.steps
        else:
            epochs, max_steps = math.ceil(args.num_train_epochs), course.steps + self._steps_to_come()
        if course.steps >= max_steps:
            epochs = self._epoch  # Trainer would take one more step
        samples, batches = course.loader.num_samples, len(dataloader)
        updates = max(1, self._updates(batches))
        return epochs, updates, samples, round(max_steps / updates * samples), batch_size, batches, max_steps

    def training_step(self, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        self._running.train(self._trainer.state.global_step)
        return super().training_step(model, inputs, *args, **kwargs)  # type: ignore[misc]

    def _inner_training_loop(self, *args: Any, resume_from_checkpoint: str | None = None, **kwargs: Any) -> Any:
        course = self._running
        if resume_from_checkpoint is None:
            course.begin_run()
        else:
            course.restore(_saved_place(Path(resume_from_checkpoint, "trainer_state.json")))
            if course.is_over:
                course.begin_pass(course.steps, gradients_stay=False)
        self._began_at, self._batches, self._tokens = course.consumed_samples, 0, 0
        try:
            return super()._inner_training_loop(*args, resume_from_checkpoint=resume_from_checkpoint, **kwargs)  # type: ignore[misc]
        finally:
            course.close()

    def _init_training_state(self, *args: Any, **kwargs: Any) -> tuple[int, int]:
        super()._init_training_state(*args, **kwargs)  # type: ignore[misc]
        return self._epoch, 0

    def _run_epoch(self, *, epoch: int, **kwargs: Any) -> None:
        course = self._running
        if epoch > self._epoch:
            course.begin_pass(self._trainer.state.global_step, gradients_stay=True)
        left = course.left()
        self._batches = course.batches + left
        kwargs |= {"steps_in_epoch": left, "num_update_steps_per_epoch": self._updates(left)}
        super()._run_epoch(epoch=epoch, **kwargs)  # type: ignore[misc]

    def _maybe_log_save_evaluate(self, *args: Any, **kwargs: Any) -> None:
        self._settle()
        super()._maybe_log_save_evaluate(*args, **kwargs)  # type: ignore[misc]

    def _save_checkpoint(self, *args: Any, **kwargs: Any) -> None:
        self._settle()
        trainer = self._trainer
        place = self._running.state(trainer.state.global_step, ended=trainer.control.should_epoch_stop)
        for callback in trainer.callback_handler.callbacks:
            if isinstance(callback, ShardPlace):
                callback.place = place
        super()._save_checkpoint(*args, **kwargs)  # type: ignore[misc]

    def _track_num_input_tokens(self, inputs: Any) -> None:
        trainer, state = self._trainer, self._trainer.state
        counted, before = trainer.args.include_num_input_tokens_seen, state.num_input_tokens_seen
        if counted != "no" and "lengths" in inputs and "weights" in inputs:
            lengths = inputs["lengths"]
            if counted == "all":
                lengths = lengths.max().expand(lengths.shape)
            tokens = lengths[inputs["weights"].to(lengths.device) > 0].sum().to(trainer.args.device)
            state.num_input_tokens_seen += trainer.accelerator.gather(tokens).sum().item()
        else:
            super()._track_num_input_tokens(inputs)  # type: ignore[misc]
        # They count when they are in the weights.
        self._tokens += state.num_input_tokens_seen - before
        state.num_input_tokens_seen = before

    def _finalize_training(self, trial: Any, num_train_samples: float, start_time: float) -> Any:
        self._settle()
        state, course = self._trainer.state, self._running
        num_train_samples = course.consumed_samples - self._began_at
        if (began := getattr(self._trainer, "_initial_global_step", None)) is not None:
            # Trainer takes the share of the steps that this call has taken of them; before 5.19 it did not.
            num_train_samples *= max(1, state.max_steps) / max(1, state.global_step - began)
        return super()._finalize_training(trial, num_train_samples, start_time)  # type: ignore[misc]

    @property
    def _running(self) -> Course:
        check("train_loader", None, self._course is not None, "it must be given to train")
        assert self._course is not None
        return self._course

    @property
    def _epoch(self) -> int:
        return self._running.passes - 1

    def _updates(self, batches: int) -> int:
        together: int = self._trainer.args.gradient_accumulation_steps
        return -(-batches // together)

    def _steps_to_come(self) -> int:
        """Until num_train_epochs are through, the last of which may be a part of one."""
        epochs, steps = self._trainer.args.num_train_epochs, 0
        for epoch, batches in enumerate(self._running.lengths(), self._epoch):
            if epoch >= epochs:
                break
            done = self._updates(self._running.batches) if epoch == self._epoch else 0
            updates = done + self._updates(batches)
            steps += max(0, math.ceil(updates * min(1, epochs - epoch)) - done)
        return steps

    def _settle(self) -> None:
        """Brings what Trainer counts to what is in the weights."""
        course, state = self._running, self._trainer.state
        if state.global_step != course.steps:
            course.settle(state.global_step)
            state.num_input_tokens_seen += self._tokens
            self._tokens = 0
        # Trainer counts from where the epoch was gone on with.
        if self._batches:
            state.epoch = self._epoch + course.batches / self._batches


class _Pass:
    """What Trainer takes for a DataLoader."""

    def __init__(self, course: Course) -> None:
        self.loader = course.loader
        self._course = course

    def __len__(self) -> int:
        return self._course.batches + self._course.left()

    def __iter__(self) -> Iterator[Any]:
        return self._course.fetch()


def _saved_place(path: Path) -> Any:
    """The place in a checkpoint. Raises ConfigError."""
    try:
        saved = json.loads(path.read_text(encoding="utf-8"))
        return saved["stateful_callbacks"][ShardPlace.__name__]["attributes"]["place"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        rule = "it must have been saved by a Trainer with ShardTrainerMixin, and hold the place of its data"
        fix = "Resume from another one, or load its model and give the loader resume_samples=."
        raise ConfigError("resume_from_checkpoint", str(path.parent), rule, fix=fix) from error
