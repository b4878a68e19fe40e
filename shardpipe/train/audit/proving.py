"""The proof: a run's key logs, from the beginning to its newest checkpoint."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import numpy as np

from shardpipe.errors import ShardpipeError, StoreError
from shardpipe.store import only_local
from shardpipe.train.audit.epochs import Epoch
from shardpipe.train.audit.lines import Lines, Logged, steps_of
from shardpipe.train.audit.naming import Names
from shardpipe.train.audit.telling import Audit, EpochFound, Stretch
from shardpipe.train.checkpoints import Checkpoint
from shardpipe.train.logs import Basis, key_logs, last_basis, last_saved
from shardpipe.train.run import checkpoints_of, last_settings, limits_of

__all__ = ["audit"]

_FAULTS_KEPT = 100


def audit(run: str) -> Audit:
    """What the key logs of the run in a folder prove. Nothing is changed; a run under way may be audited.

    A sample is known by (dataset, own epoch, ordinal). It takes a byte of memory for each of the dataset's. Raises
    StoreError where there are no logs.
    """
    folder = Path(only_local("run", run))
    logs = key_logs(folder)
    if not logs:
        fix = "A run writes them unless it is told --no-log-samples."
        raise StoreError("there are no key logs", url=str(folder), fix=fix)
    settings = last_settings(str(folder)) or {}
    basis = last_basis(logs[0]) if 0 in logs else None
    names = Names(settings.get("data"), basis.dataset if basis else None, settings.get("schemes") or "")
    proof = _Proof(folder, names)
    saved, checkpoint = _saved(run, folder)
    lines, beyond = Lines(folder, proof.fault), 0
    for count, together in steps_of(lines.read()):
        if count <= saved:
            proof.take(count, together)
        else:
            beyond += sum(len(each.line.samples) for each in together)
    proof.end(saved, checkpoint)
    samples = beyond + sum(found.came for found in proof.epochs)
    return Audit(
        run=str(folder),
        saved_at=saved,
        beyond=beyond,
        epochs=proof.epochs,
        stretches=proof.stretches,
        not_finite=proof.not_finite,
        faults=proof.faults,
        further_faults=proof.further_faults,
        bytes_a_sample=lines.bytes / samples if samples else None,
        lengths=proof.lengths,
    )


def _saved(run: str, folder: Path) -> tuple[int, Checkpoint | None]:
    """The count up to which a run is saved, and what the checkpoint there says, if it is to be had."""
    said, newest, checkpoint = last_saved(folder / "metrics.jsonl") or 0, 0, None
    with suppress(ShardpipeError):
        checkpoints = checkpoints_of(run)
        newest = max(checkpoints.counts(), default=0)
        if newest >= said and newest:
            checkpoint = checkpoints.peek(newest)
    return max(said, newest), checkpoint


class _Proof:
    """Takes step by step what the logs say, in the order of counts."""

    def __init__(self, folder: Path, names: Names) -> None:
        self._folder = folder
        self._names = names
        self._limits = limits_of(str(folder))
        self._basis: Basis | None = None
        self._reached = 0
        self._epoch: Epoch | None = None
        self._again: set[tuple[int, int]] = set()
        self.epochs: list[EpochFound] = []
        self.stretches: list[Stretch] = []
        self.not_finite: list[int] = []
        self.faults: list[str] = []
        self.further_faults = 0
        self.lengths = ""

    def fault(self, text: str) -> None:
        """The logs do not prove what they should."""
        if len(self.faults) < _FAULTS_KEPT:
            self.faults.append(text)
        else:
            self.further_faults += 1

    def take(self, count: int, together: Sequence[Logged]) -> None:
        """All lines of one count: a step, what was left out in it, and what those to come mean."""
        batches = [each for each in together if each.line.samples or each.line.unreadable]
        excluded = sum(each.line.excluded for each in together)
        if any(each.line.not_finite for each in together):
            self.not_finite.append(count)
        if batches or excluded:
            self._take_step(count, batches, excluded)
        for each in together:
            if each.line.basis is not None:
                self._begin(count, each.line.basis)

    def end(self, saved: int, checkpoint: Checkpoint | None) -> None:
        """The logs are at their end; they must reach what is saved, and count as it does."""
        if self._basis is not None and not self._basis.logged:
            self._skip(saved, "not logged")
        if self._reached < saved and not self.epochs and self._basis is None:
            self._skip(saved, "not logged")
        if self._reached != saved:
            self.fault(f"the logs end at sample {self._reached}, and the run is saved at sample {saved}")
        self._close()
        if self._again:
            self._say_where()
        if checkpoint is None or self.stretches or self.faults:
            return
        unreadable = sum(len(found.unreadable) for found in self.epochs)
        left_out = sum(len(found.left_out) for found in self.epochs)
        excluded = sum(found.excluded for found in self.epochs)
        progress = checkpoint.progress
        for what, logged, counted in (
            ("steps without a finite gradient", len(self.not_finite), progress.skipped_steps),
            ("samples left out for their length", excluded, progress.excluded),
            ("samples that could not be decoded", unreadable, progress.unreadable),
            ("samples too short for their text", left_out, progress.left_out),
        ):
            if logged != counted:
                self.fault(f"{what}: {logged} in the logs, {counted} in the checkpoint at sample {saved}")

    def _take_step(self, count: int, batches: Sequence[Logged], excluded: int) -> None:
        if self._basis is None:
            self.fault(f"the step that ends at sample {count}: no line before it says of which dataset")
            return
        size = self._basis.num_samples
        number, delta = (count - 1) // size, count - self._reached
        if self._reached < number * size:
            self.fault(f"the step that ends at sample {count} begins in the epoch before, at sample {self._reached}")
        epoch = self._at(number, max(0, self._reached - number * size))
        given = 0
        for each in batches:
            line = each.line
            epoch.add(line.samples, line.unreadable, line.left_out)
            given += len(line.samples) + len(line.unreadable)
            if line.epoch != number:
                self.fault(f"keys-rank{each.rank}.jsonl, line {each.number}: its epoch is not that of its count")
        if given + excluded != delta:
            left = f" and leaves out {excluded}" if excluded else ""
            text = f"the step that ends at sample {count} gives {given} samples{left}, where the count goes by {delta}"
            self.fault(text)
        epoch.excluded += excluded
        epoch.reached = count - number * size
        self._reached = count

    def _begin(self, count: int, basis: Basis) -> None:
        before, self._basis = self._basis, basis
        if before is not None and (before.dataset, before.num_samples) != (basis.dataset, basis.num_samples):
            self._close()
        if basis.since is not None and basis.since >= self._reached:
            if basis.since > self._reached:
                self.fault(f"samples {self._reached} to {basis.since} are in no line")
            self._skip(count, basis.why or "", since=basis.since)
        elif before is not None and not before.logged:
            self._skip(count, "not logged")
        if count != self._reached:
            self.fault(f"samples {self._reached} to {count} are in no line")

    def _skip(self, count: int, why: str, *, since: int | None = None) -> None:
        """The logs say that they hold nothing up to a count."""
        position = self._reached if since is None else since
        if position < count:
            self.stretches.append(Stretch(since=position, until=count, why=why))
        size = self._basis.num_samples if self._basis is not None else 0
        while size and position < count:
            number = position // size
            epoch = self._at(number, position - number * size)
            after = min(count, (number + 1) * size)
            epoch.elsewhere += after - position
            epoch.reached = after - number * size
            position = after
        self._reached = count

    def _at(self, number: int, began: int) -> Epoch:
        """The account of an epoch; the one before is closed."""
        if self._epoch is None or self._epoch.number != number:
            self._close()
            assert self._basis is not None
            self._epoch = Epoch(number=number, size=self._basis.num_samples, reached=began)
            self._dataset = self._basis.dataset
        return self._epoch

    def _close(self) -> None:
        epoch, self._epoch = self._epoch, None
        if epoch is None:
            return
        came, where = epoch.came, f"epoch {epoch.number}"
        if epoch.strange:
            self.fault(f"{where}: the dataset has no samples {self._names.names(sorted(epoch.strange))}")
        self._again |= {(epoch.number, ordinal) for ordinal in epoch.again}
        unexplained = epoch.reached - came - epoch.excluded - epoch.elsewhere
        if epoch.again or unexplained > 0:
            self.fault(f"{where}: {max(unexplained, len(epoch.again))} samples came again, or not at all")
        missing = None
        if epoch.reached == epoch.size and not epoch.elsewhere:
            missing = epoch.missing()
            self._check_lengths(epoch, missing)
        self.epochs.append(
            EpochFound(
                epoch=epoch.number,
                dataset=self._dataset,
                samples=epoch.size,
                consumed=epoch.reached,
                came=came,
                excluded=epoch.excluded,
                excluded_ordinals=None if missing is None else missing.tolist(),
                unreadable=epoch.unreadable,
                left_out=epoch.left_out,
                elsewhere=epoch.elsewhere,
            )
        )

    def _check_lengths(self, epoch: Epoch, missing: np.ndarray) -> None:
        """What did not come must lie outside the limits that were in force."""
        if not len(missing):
            return
        begin, end = epoch.number * epoch.size, (epoch.number + 1) * epoch.size
        limits = [limit for since, until, *limit in self._limits if since < end and until > begin]
        seconds = self._names.lengths(missing)
        if seconds is None or not limits:
            self.lengths = self._names.reason if seconds is None else "the limits of each start are not known"
            if len(missing) > epoch.excluded:
                self.fault(
                    f"epoch {epoch.number}: {len(missing) - epoch.excluded} samples never came, among "
                    f"{self._names.names(missing)}"
                )
            return
        outside = np.zeros(len(missing), np.bool_)
        for low, high in limits:
            outside |= (seconds < (low or 0)) | (seconds > (np.inf if high is None else high))
        if not outside.all():
            inside = missing[~outside]
            self.fault(f"epoch {epoch.number}: {len(inside)} samples never came: {self._names.names(inside)}")

    def _say_where(self) -> None:
        """The lines of the first samples that came again."""
        wanted = set(sorted(self._again)[:10])
        found: dict[tuple[int, int], list[str]] = {}
        for each in Lines(self._folder, lambda _: None).read():
            for ordinal in (*each.line.samples, *each.line.unreadable):
                if (which := (each.line.epoch or 0, ordinal)) in wanted:
                    found.setdefault(which, []).append(f"keys-rank{each.rank}.jsonl, line {each.number}")
        for (epoch, ordinal), lines in sorted(found.items()):
            self.fault(f"epoch {epoch}: sample {self._names.name(ordinal)} came {len(lines)} times: {'; '.join(lines)}")
