"""The proof: a run's key logs, from the beginning to its newest checkpoint."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from shardpipe.errors import ShardpipeError, StoreError
from shardpipe.store import only_local
from shardpipe.train.audit.epochs import Epoch
from shardpipe.train.audit.judging import Judge
from shardpipe.train.audit.lines import Lines, Logged, steps_of
from shardpipe.train.audit.telling import Audit, Stretch
from shardpipe.train.checkpoints import Checkpoint
from shardpipe.train.logs import Basis, key_logs, last_count, last_saved
from shardpipe.train.run import checkpoints_of

__all__ = ["audit"]


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
    saved, checkpoint = _saved(run, folder, (last_count(logs[0]) or 0) if 0 in logs else 0)
    judge = Judge(folder)
    proof, lines, beyond = _Proof(judge), Lines(folder, judge.fault), 0
    for count, together in steps_of(lines.read()):
        if count <= saved:
            proof.take(count, together)
        else:
            beyond += sum(len(each.line.samples) for each in together)
    proof.end(saved)
    if checkpoint is not None and not proof.stretches:
        judge.compare(checkpoint, not_finite=len(proof.not_finite))
    judge.say_where()
    samples = beyond + sum(found.came for found in judge.epochs)
    return Audit(
        run=str(folder),
        saved_at=saved,
        proved=saved - sum(stretch.until - stretch.since for stretch in proof.stretches),
        beyond=beyond,
        epochs=judge.epochs,
        stretches=proof.stretches,
        not_finite=proof.not_finite,
        faults=judge.faults,
        further_faults=judge.further_faults,
        bytes_a_sample=lines.bytes / samples if samples else None,
        lengths=judge.lengths,
    )


def _saved(run: str, folder: Path, logged: int) -> tuple[int, Checkpoint | None]:
    """The count up to which a run is saved, and what the checkpoint there says, if it is to be had."""
    said = last_saved(folder / "metrics.jsonl") or 0
    with suppress(ShardpipeError):
        checkpoints = checkpoints_of(run)
        for count in reversed(checkpoints.counts()):
            if count < said:
                break
            # A resume passes over one that is damaged, and cuts the logs back to where it goes on instead.
            with suppress(StoreError):
                return count, checkpoints.peek(count) if count <= logged else checkpoints.read(count)
    return said, None


class _Proof:
    """Takes step by step what the logs say, in the order of counts; `judge` is given each epoch when it is over."""

    def __init__(self, judge: Judge) -> None:
        self._judge = judge
        self._fault = judge.fault
        self._basis: Basis | None = None
        self._reached = 0
        self._epoch: Epoch | None = None
        self.stretches: list[Stretch] = []
        self.not_finite: list[int] = []

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

    def end(self, saved: int) -> None:
        """The logs are at their end, and must reach what is saved."""
        if self._basis is None or not self._basis.logged:
            self._skip(saved, "not logged")
        if self._reached != saved:
            self._fault(f"the logs end at sample {self._reached}, and the run is saved at sample {saved}")
        if saved and sum(stretch.until - stretch.since for stretch in self.stretches) == saved:
            self._fault(f"the logs hold nothing of what the run was given up to sample {saved}")
        self._close()

    def _take_step(self, count: int, batches: Sequence[Logged], excluded: int) -> None:
        if self._basis is None:
            self._fault(f"the step that ends at sample {count}: no line before it says of which dataset")
            return
        size = self._basis.num_samples
        number, delta = (count - 1) // size, count - self._reached
        if self._reached < number * size:
            self._fault(f"the step that ends at sample {count} begins in the epoch before, at sample {self._reached}")
        epoch = self._at(number, max(0, self._reached - number * size))
        given = 0
        for each in batches:
            line = each.line
            epoch.add(line.samples, line.unreadable, line.left_out)
            if not set(line.left_out) <= set(line.samples):
                self._fault(f"{each.where}: what was too short for its text is not among its samples")
            given += len(line.samples) + len(line.unreadable)
            if line.epoch != number:
                self._fault(f"{each.where}: its epoch is not that of its count")
        if given + excluded != delta:
            left = f" and leaves out {excluded}" if excluded else ""
            text = f"the step that ends at sample {count} gives {given} samples{left}, where the count goes by {delta}"
            self._fault(text)
        epoch.excluded += excluded
        epoch.reached = count - number * size
        self._reached = count

    def _begin(self, count: int, basis: Basis) -> None:
        before, self._basis = self._basis, basis
        if before is not None and (before.dataset, before.num_samples) != (basis.dataset, basis.num_samples):
            self._close()
        if basis.since is not None and basis.since >= self._reached:
            if basis.since > self._reached:
                self._fault(f"samples {self._reached} to {basis.since} are in no line")
            self._skip(count, basis.why or "", since=basis.since)
        elif before is not None and not before.logged:
            self._skip(count, "not logged")
        if count != self._reached:
            self._fault(f"samples {self._reached} to {count} are in no line")

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
            # What came before it in the epoch was another dataset's.
            basis = self._basis
            self._epoch = Epoch(
                number=number, dataset=basis.dataset, size=basis.num_samples, reached=began, elsewhere=began
            )
        return self._epoch

    def _close(self) -> None:
        if self._epoch is not None:
            self._judge.take(self._epoch)
        self._epoch = None
