"""The training loop, from top to bottom."""

from __future__ import annotations

from shardpipe.errors import ShardpipeError
from shardpipe.train.config import TrainConfig
from shardpipe.train.ending import Stop
from shardpipe.train.engines import World
from shardpipe.train.logs import Display
from shardpipe.train.run import open_run
from shardpipe.train.steps import Clock, Tally, micro_batches

__all__ = ["train"]

# So many steps in a row without a finite gradient are no accident of the data.
_SKIPPED_IN_A_ROW_MAX = 20


def train(config: TrainConfig, world: World, display: Display, *, stop: Stop, began: float) -> int:
    """Trains until all epochs are done, until this start, which `began` at that time, has had its part, or until `stop`
    says so in any process; returns the exit code that says whether it is to be started again.

    Whatever ends it, the same call goes on from the newest checkpoint. On as many processes, on the same kind of
    machine, it then reaches the same bits as a run that nothing ended.

    A step whose gradient is not finite leaves model and optimizer as they are and is counted; 20 in a row raise
    ShardpipeError. Raises also what the data, the folder and the checkpoint give cause for, all ShardpipeErrors.
    """
    with open_run(config, world, display, began=began) as run:
        loader, learner, engine, progress = run.loader, run.learner, run.learner.engine, run.progress
        clock, stopped = Clock(), False
        while True:
            if not stopped and not progress.evaluated:
                run.evaluation.run(stop.has_been_asked)
                # However short its time is, a start that had to evaluate first takes a step, too.
                stopped = world.any(stop() if run.has_moved else stop.has_been_asked())
            if loader.consumed_samples >= run.total and progress.evaluated:
                run.finish()
                return 0
            if stopped or run.has_had_its_part:
                return run.tell_how_to_go_on("stopped" if world.any(stop.has_been_asked()) else "part")

            place, before = (loader.epoch, loader.sub_epoch), loader.consumed_samples
            tally = Tally()
            clock.restart()
            for micro in micro_batches(loader, clock, by_ranks=run.by_ranks):
                run.took(micro.batch)
                # Whatever is random below is a function of the batch's place, so a resume has nothing to replay. (In a
                # run by version 0.1 of the step's, by which its first batch seeds for all.)
                if micro.seed is not None:
                    world.seed(micro.seed)
                with engine.accumulating(later=not micro.ends_step):
                    result = learner.forward(micro.batch, train=True)
                    engine.backward(result.loss)
                tally.add(result)
                run.given.take(micro.batch, result)
                if not micro.ends_step:
                    continue

                tally.save, tally.stop, tally.notes = run.saves.due(before), stop(), len(run.given.notes)
                tally, before = tally.over(world), loader.consumed_samples
                progress.steps += 1
                rate = run.rate(place, before)
                norm = engine.update(learner.optimizer, weight=tally.weight, rate=rate)
                run.count_step(place, before, tally, clock, rate=rate, norm=norm)
                if progress.skipped_in_a_row >= _SKIPPED_IN_A_ROW_MAX:
                    raise ShardpipeError(
                        f"the gradient was not finite in {progress.skipped_in_a_row} steps in a row",
                        where=f"sample {before}",
                        fix="Go back to an earlier checkpoint (--resume PATH) with a lower --learning-rate.",
                    )

                stopped = tally.stop > 0
                if stopped:
                    break
                # A sub-epoch's last step is followed by the checkpoint below.
                if tally.save and (loader.epoch, loader.sub_epoch) == place:
                    run.saves.save()
                tally = Tally()
                clock.restart()

            run.count_the_rest()
            if (loader.epoch, loader.sub_epoch) != place:
                run.end_sub_epoch(place)
                progress.evaluated = not run.valid
            # Saved before it is evaluated: whatever stops the evaluation, a resume does it again, and nothing else.
            run.saves.save()
