"""Whether an epoch, and the whole of them, came out as they should."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from shardpipe.train.audit.epochs import Epoch, Ordinals
from shardpipe.train.audit.lines import Lines
from shardpipe.train.audit.naming import Names
from shardpipe.train.audit.telling import EpochFound
from shardpipe.train.checkpoints import Checkpoint
from shardpipe.train.run import last_settings, limits_of

__all__ = ["Judge"]

_FAULTS_KEPT = 100
_LISTED = 100_000
_LOOKED_FOR = 10


class Judge:
    """Collects what is found of the epochs of the run in a folder, and what is wrong."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._limits = limits_of(str(folder))
        self._settings = last_settings(str(folder)) or {}
        self._names: dict[str, Names] = {}
        self._again: list[tuple[str, int, int]] = []
        self.epochs: list[EpochFound] = []
        self.faults: list[str] = []
        self.further_faults = 0
        self.lengths = ""

    def fault(self, text: str) -> None:
        """The logs do not prove what they should."""
        if len(self.faults) < _FAULTS_KEPT:
            self.faults.append(text)
        else:
            self.further_faults += 1

    def take(self, epoch: Epoch) -> None:
        """An epoch is over, or the logs are."""
        came, where, names = epoch.came, f"epoch {epoch.number}", self._of(epoch.dataset)
        if epoch.strange:
            self.fault(f"{where}: the dataset has no samples {names.names(epoch.strange)}")
        self._again += [(epoch.dataset, epoch.number, ordinal) for ordinal in epoch.again]
        unexplained = epoch.reached - came - epoch.excluded - epoch.elsewhere
        if epoch.again or unexplained > 0:
            self.fault(f"{where}: {max(unexplained, len(epoch.again))} samples came again, or not at all")
        missing = None
        if epoch.reached == epoch.size and not epoch.elsewhere:
            missing = epoch.missing()
            self._check_lengths(epoch, missing, names)
        self.epochs.append(
            EpochFound(
                epoch=epoch.number,
                dataset=epoch.dataset,
                samples=epoch.size,
                consumed=epoch.reached,
                came=came,
                excluded=epoch.excluded,
                excluded_ordinals=None if missing is None or len(missing) > _LISTED else missing.tolist(),
                unreadable=epoch.unreadable,
                left_out=epoch.left_out,
                elsewhere=epoch.elsewhere,
            )
        )

    def compare(self, checkpoint: Checkpoint, *, not_finite: int) -> None:
        """What the logs sum up to is what the checkpoint at their end counts."""
        progress = checkpoint.progress
        for what, logged, counted in (
            ("steps without a finite gradient", not_finite, progress.skipped_steps),
            ("samples left out for their length", sum(e.excluded for e in self.epochs), progress.excluded),
            ("samples that could not be decoded", sum(len(e.unreadable) for e in self.epochs), progress.unreadable),
            ("samples too short for their text", sum(len(e.left_out) for e in self.epochs), progress.left_out),
        ):
            if logged != counted:
                where = f"the checkpoint at sample {checkpoint.consumed_samples}"
                self.fault(f"{what}: {logged} in the logs, {counted} in {where}")

    def say_where(self) -> None:
        """Names the lines of the first samples that came again."""
        if not self._again:
            return
        wanted, dataset = set(self._again[:_LOOKED_FOR]), ""
        found: dict[tuple[str, int, int], list[str]] = {}
        for each in Lines(self._folder, lambda _: None).read():
            dataset = dataset if each.line.basis is None else each.line.basis.dataset
            for ordinal in (*each.line.samples, *each.line.unreadable):
                if (which := (dataset, each.line.epoch or 0, ordinal)) in wanted:
                    found.setdefault(which, []).append(each.where)
        for (dataset, epoch, ordinal), lines in sorted(found.items()):
            sample = self._of(dataset).name(ordinal)
            self.fault(f"epoch {epoch}: sample {sample} came {len(lines)} times: {'; '.join(lines)}")

    def _of(self, dataset: str) -> Names:
        if dataset not in self._names:
            self._names[dataset] = Names(self._settings.get("data"), dataset, self._settings.get("schemes"))
        return self._names[dataset]

    def _check_lengths(self, epoch: Epoch, missing: Ordinals, names: Names) -> None:
        """What did not come must lie outside the limits that were in force."""
        if not len(missing):
            return
        begin, end = epoch.number * epoch.size, (epoch.number + 1) * epoch.size
        limits = [limit for since, until, *limit in self._limits if since < end and until > begin]
        seconds = names.lengths(missing)
        if seconds is None or not limits:
            self.lengths = names.reason if seconds is None else "the limits of each start are not known"
            if (lost := len(missing) - epoch.excluded) > 0:
                self.fault(f"epoch {epoch.number}: {lost} samples never came, of {names.names(missing)}")
            return
        inside = np.ones(len(missing), np.bool_)
        for low, high in limits:
            inside &= (seconds >= (low or 0)) & (seconds <= (np.inf if high is None else high))
        if inside.any():
            lost = int(inside.sum())
            self.fault(f"epoch {epoch.number}: {lost} samples never came: {names.names(missing[inside])}")
