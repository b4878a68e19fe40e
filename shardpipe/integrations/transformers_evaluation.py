"""transformers: evaluations in which every sample counts once, on any number of processes."""

from __future__ import annotations

import math
from typing import Any

import torch
from accelerate.utils import find_batch_size, recursively_apply

from shardpipe import ShardLoader
from shardpipe.errors import ConfigError
from shardpipe.integrations.accelerate import PreparedLoader, prepare
from shardpipe.settings import check

__all__ = ["EvaluationMixin", "check_ranks"]


class EvaluationMixin:
    """The part of ShardTrainerMixin that evaluates and predicts.

    Trainer gathers outputs of batches of one size and takes the mean of batches' losses. Here ranks may have batches of
    different sizes, repeats of weight 0 fill the last step, and the loss is one of samples.
    """

    def __init__(
        self, *args: Any, eval_loader: ShardLoader | dict[str, ShardLoader] | None = None, **kwargs: Any
    ) -> None:
        if eval_loader is not None:
            for loader in eval_loader.values() if isinstance(eval_loader, dict) else [eval_loader]:
                _check_whole(loader)
            kwargs["eval_dataset"] = eval_loader
        super().__init__(*args, **kwargs)
        self._evaluated: list[torch.Tensor] = []

    def get_eval_dataloader(self, eval_dataset: str | ShardLoader | None = None) -> PreparedLoader:
        loader: Any = self._trainer.eval_dataset if eval_dataset is None else eval_dataset
        if isinstance(eval_dataset, str):
            given = self._trainer.eval_dataset
            check("eval_dataset", eval_dataset, eval_dataset in given, "eval_loader has none of this name")
            loader = given[eval_dataset]
        _check_whole(loader)
        prepared = prepare(self._trainer.accelerator, loader)
        check_ranks(self._trainer, loader)
        return prepared

    def get_test_dataloader(self, test_dataset: ShardLoader) -> PreparedLoader:
        return self.get_eval_dataloader(test_dataset)

    def prediction_step(self, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        loss, logits, labels = super().prediction_step(model, inputs, *args, **kwargs)  # type: ignore[misc]
        weights = inputs["weights"] if "weights" in inputs else torch.ones(find_batch_size(inputs))
        real = weights.to(self._trainer.args.device) > 0
        if loss is not None:
            samples = real.sum() * (loss.isfinite() if self._trainer.args.logging_nan_inf_filter else 1)
            self._evaluated.append(torch.stack([torch.where(samples > 0, loss * samples, 0), samples]))
        return loss, self._gathered(logits, real), self._gathered(labels, real)

    def evaluation_loop(self, *args: Any, metric_key_prefix: str = "eval", **kwargs: Any) -> Any:
        trainer = self._trainer
        rule = "outputs are gathered without what only fills the last step, and inputs are not"
        check("include_for_metrics", ["inputs"], "inputs" not in trainer.args.include_for_metrics, rule)
        self._evaluated = []
        trainer.gather_function = _as_it_is
        output = super().evaluation_loop(*args, metric_key_prefix=metric_key_prefix, **kwargs)  # type: ignore[misc]
        if self._evaluated:
            sums = torch.stack(self._evaluated).double().sum(0)
            loss, samples = trainer.accelerator.reduce(sums).tolist()
            output.metrics[f"{metric_key_prefix}_loss"] = loss / samples if samples else math.nan
        return output

    @property
    def _trainer(self) -> Any:
        """Itself, as the Trainer that it is put before."""
        return self

    def _gathered(self, outputs: Any, real: torch.Tensor) -> Any:
        """Those of all processes, of samples that count. Ranks may have batches of different sizes."""
        accelerator = self._trainer.accelerator

        def rows(tensor: torch.Tensor) -> torch.Tensor:
            if accelerator.num_processes == 1:
                return tensor[real]
            if tensor.ndim > 1:
                tensor = accelerator.pad_across_processes(tensor, dim=1, pad_index=-100)
            tensor = accelerator.pad_across_processes(tensor.contiguous(), pad_index=-100)
            counts = accelerator.pad_across_processes(real.int())
            return accelerator.gather(tensor)[accelerator.gather(counts) > 0]  # type: ignore[no-any-return]

        return None if outputs is None else recursively_apply(rows, outputs)


def check_ranks(trainer: Any, loader: ShardLoader) -> None:
    """Raises ConfigError where processes share a model and the loader was not told which share batches."""
    own = trainer.args.process_index, trainer.args.world_size
    together = trainer.get_tp_size() * trainer.get_cp_size() * trainer.get_sp_size()
    rule = f"{together} processes share a model, and are to share its batches"
    if together > 1 and loader.default_ranks(*own) == own:
        raise ConfigError("rank", own[0], rule, fix='Give the loader rank=mesh["dp"], or rank and world_size.')


def _as_it_is(outputs: Any) -> Any:
    """For what has been gathered already."""
    return outputs


def _check_whole(loader: object) -> None:
    check("eval_loader", type(loader).__name__, isinstance(loader, ShardLoader), "it must be a ShardLoader")
    assert isinstance(loader, ShardLoader)
    check(
        "repeat", loader.repeat, not loader.repeat, "an evaluation is a whole pass: make eval_loader with repeat=False"
    )
