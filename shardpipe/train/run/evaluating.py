"""The evaluation of a run after a sub-epoch, and what is decided by it."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass

from shardpipe import Batch, ShardLoader
from shardpipe.errors import ShardpipeError
from shardpipe.train.checkpoints import Progress
from shardpipe.train.config import TrainConfig
from shardpipe.train.ending import Watchdog
from shardpipe.train.engines import World
from shardpipe.train.evaluation import EvaluationStopped, evaluate_sets
from shardpipe.train.logs import Display
from shardpipe.train.run.goodput import Goodput
from shardpipe.train.run.saves import Saves
from shardpipe.train.task import Learner
from shardpipe.train.validation import FIGURES, named, shown

__all__ = ["Evaluation"]


@dataclass(kw_only=True)
class Evaluation:
    """Every process has one. `record` writes an event at a count."""

    config: TrainConfig
    world: World
    display: Display
    loader: ShardLoader
    valid: Mapping[str, ShardLoader]
    learner: Learner
    progress: Progress
    saves: Saves
    record: Callable[..., None]
    watchdog: Watchdog
    goodput: Goodput

    def run(self, stop: Callable[[], bool]) -> None:
        """Loss and error rates on every set: recorded, shown, and noted in the checkpoint of this moment. A set whose
        data cannot be had is left out of it, which is said and recorded; the one that decides something must not be.

        Where `stop` holds in any process it ends, with nothing noted: the next start evaluates again.
        """
        with self.goodput.spending("validation"), suppress(EvaluationStopped):
            self._evaluate(stop)

    def _evaluate(self, stop: Callable[[], bool]) -> None:
        count, config = self.loader.consumed_samples, self.config
        decides = config.keep_best > 0 or config.schedule == "plateau"
        figures: dict[str, float | None] = {}
        needed = config.best_figure.rpartition("/")[0] if decides else None
        for name, found in evaluate_sets(
            self.learner, self.valid, self.world, needed=needed, taken=self._taken, stop=stop
        ):
            if isinstance(found, ShardpipeError):
                self.progress.failed_evaluations += 1
                self.record("valid_failed", count, set=name, reason=str(found))
                self.display.say(f"sample {count}  {name} cannot be evaluated, and the training goes on: {found}")
                continue
            self.record("valid", count, set=name, **found)
            text = "loss {loss:.4f}  WER {wer:.2%}  CER {cer:.2%}  {utterances} utterances".format(**found)
            aside = {kind: found[kind] for kind in ("left_out", "excluded", "unreadable") if found[kind]}
            self.display.say(f"sample {count}  {name} {text}" + (f"  {aside}" if aside else ""))
            figures |= {named(name, f): found[f] if math.isfinite(found[f]) else None for f in FIGURES}
        if config.schedule == "plateau":
            self._look_for_a_plateau(figures[config.best_figure])
        self.progress.evaluated = True
        self.saves.mark_evaluated(figures)

    def _taken(self, batch: Batch) -> None:
        self.watchdog.saw(f"the evaluation at sample {self.loader.consumed_samples}", batch.keys)

    def _look_for_a_plateau(self, figure: float | None) -> None:
        before, config = self.progress.plateau, self.config
        assert before is not None
        after = before.after(figure, patience=config.plateau_patience, factor=config.plateau_factor)
        self.progress.plateau = after
        if after.factor < before.factor:
            text = f"no better {shown(before.by, self.valid)} in {config.plateau_patience} evaluations"
            lowered = f"the rate is lowered to {after.peak * after.factor:.2e}"
            self.display.say(f"sample {self.loader.consumed_samples}  {text}: {lowered}")
