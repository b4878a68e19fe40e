"""Opening a run: its folder, its data and its model, put where it was left."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec

from shardpipe import ShardLoader
from shardpipe.errors import ConfigError, ResumeMismatch, ShardpipeError, StoreError
from shardpipe.store import is_url, writing
from shardpipe.train.checkpoints import FORMAT, Checkpoint, Checkpoints, Keep, Progress, Saver, damaged, restore
from shardpipe.train.config import TrainConfig
from shardpipe.train.ending import ExitFile, Watchdog, stacks_folder
from shardpipe.train.engines import World
from shardpipe.train.logs import Display
from shardpipe.train.run.doubts import about_texts
from shardpipe.train.run.goodput import Goodput
from shardpipe.train.run.records import cut_records, open_records
from shardpipe.train.run.running import Run
from shardpipe.train.run.settings import changes, checkpoints_of, write_settings
from shardpipe.train.run.start import Start, find_start
from shardpipe.train.schedule import Plateau, Schedule
from shardpipe.train.steps import batches_per_step
from shardpipe.train.task import CharTokenizer, Learner

__all__ = ["open_run"]


@contextmanager
def open_run(config: TrainConfig, world: World, display: Display, *, began: float) -> Iterator[Run]:
    """Finds where to start, opens the data there, loads the checkpoint, and cuts the records back to it. `began` is the
    monotonic clock's time at which this process did.

    What the run's folder holds is left as it is until everything has been found to fit.
    """
    with ExitStack() as stack:
        world.from_main(lambda: stack.enter_context(_locked(Path(config.out))))
        if not is_url(place := config.checkpoints_at) and Path(place).resolve().parent != Path(config.out).resolve():
            world.from_main(lambda: stack.enter_context(_locked(Path(place))))
        stacks = world.from_main(lambda: stacks_folder(Path(config.out)))
        exit_file = ExitFile(Path(config.out), world.rank, start=stacks.name)
        watchdog = stack.enter_context(Watchdog(config.hang_minutes, stacks, (world.rank, world.size), exit_file))
        world.from_main(exit_file.clear)
        with exit_file.telling():
            run = _opened(config, world, display, stack, watchdog, began)
            run.goodput.opened()
            try:
                yield run
            finally:
                watchdog.saw("the winding up of the run", trains=False)


def _opened(
    config: TrainConfig, world: World, display: Display, stack: ExitStack, watchdog: Watchdog, began: float
) -> Run:
    checkpoints = Checkpoints(config.checkpoints_at, keep=Keep.of(config))
    start = world.from_main(lambda: find_start(config, checkpoints, display.say))
    size = batches_per_step(config, world.size, kept=start.batches_per_step, by_ranks=start.steps_by_ranks)
    loader = _loader(
        config,
        world,
        config.data,
        batches_per_step=size,
        lanes=config.lanes,
        sub_epochs=config.sub_epochs,
        sub_epoch_samples=config.sub_epoch_samples,
        resume_samples=start.samples,
        servers=config.servers,
        local=config.local,
    )
    valid = {name: _valid_set(config, world, place, loader) for name, place in config.valid_sets.items()}
    watchdog.saw("the reading of the texts", trains=False)
    world.from_main(lambda: _check_texts(config, loader))
    tokenizer = world.from_main(lambda: _tokenizer(config, start, loader))
    learner = Learner(config, world, tokenizer, loader.sample_rate)
    watchdog.saw("the loading of the checkpoint", trains=False)
    if start.checkpoint is not None:
        _take_place(start, start.checkpoint, loader, learner, size)
        restore(start.checkpoint, learner.model, learner.optimizer, world)
        if start.resumes:
            learner.engine.precision.scale = start.checkpoint.scale
    if size is not None:  # as it is for the run, on any number of processes
        config = replace(config, batches_per_step=size, accumulate=None)
    saver = Saver(checkpoints, world, display.say)
    stack.callback(saver.close)
    if foreign := start.checkpoint is not None and start.resumes and not checkpoints.holds(start.checkpoint):
        # The run has it here before its folder says that it goes on from here.
        state = loader.state_dict()
        saver.save(learner.model, learner.optimizer, replace(start.checkpoint, loader=state, files={}, format=FORMAT))
        saver.wait()
        saver.written()  # not a checkpoint of the training to come
    changed = world.from_main(lambda: changes(config, start.samples) if start.resumes else {})
    own = world.is_main and start.resumes and (not foreign or _was_own(config, start))
    world.from_main(lambda: _prepare_folder(config, start, checkpoints, tokenizer, display, foreign=foreign, own=own))
    if world.is_main and start.resumes:
        saver.prune(start.samples)  # a run that was killed may not have come to it
    recorder, keys = open_records(config, world, start, loader, stack, own=own)
    counted = start.samples if own else 0
    goodput = Goodput(Path(config.out) if world.is_main else None, counted, began=began)
    stack.callback(goodput.close)
    run = Run(
        config=config,
        world=world,
        display=display,
        loader=loader,
        valid=valid,
        learner=learner,
        schedule=_schedule(config, loader),
        saver=saver,
        progress=_progress(config, start, loader, evaluates=bool(valid)),
        recorder=recorder,
        keys=keys,
        goodput=goodput,
        watchdog=watchdog,
        exit_file=watchdog.said,
        total=config.epochs * loader.num_samples,
        batches_per_step=size,
    )
    run.announce(resumes=start.resumes, changed=changed)
    world.from_main(lambda: write_settings(config, start.samples, resumes=start.resumes))
    if world.is_main:
        _doubt_texts([(config.data, loader), *valid.items()], tokenizer, display)
    return run


def _progress(config: TrainConfig, start: Start, loader: ShardLoader, *, evaluates: bool) -> Progress:
    """What the run has counted up to its start. One that begins at a count with another run's model takes its steps
    over, for the schedule, and nothing else.
    """
    progress = Progress()
    if start.checkpoint is not None and start.resumes:
        progress = msgspec.structs.replace(start.checkpoint.progress, evaluated=start.evaluated or not evaluates)
    elif start.checkpoint is not None and start.samples:
        progress.steps = start.checkpoint.progress.steps
    if progress.sub_epochs is None:
        progress.sub_epochs = loader.epoch * loader.sub_epochs + loader.sub_epoch
    if config.schedule == "plateau":
        plateau = progress.plateau or Plateau(peak=config.learning_rate, by=config.best_figure)
        progress.plateau = plateau.going_on(peak=config.learning_rate, by=config.best_figure)
    return progress


def _valid_set(config: TrainConfig, world: World, place: str, training: ShardLoader) -> ShardLoader:
    found = _loader(config, world, place, shuffle=False, repeat=False)
    if found.sample_rate != training.sample_rate:
        rule = f"it has {found.sample_rate} Hz and the training data {training.sample_rate} Hz"
        raise ConfigError("valid", place, rule, fix="Give --sample-rate.")
    return found


def _doubt_texts(sets: Iterable[tuple[str, ShardLoader]], tokenizer: CharTokenizer, display: Display) -> None:
    for name, loader in sets:
        with suppress(ShardpipeError):  # whoever needs what cannot be read will tell
            if (doubt := about_texts(name, loader.texts(), tokenizer)) is not None:
                display.say(f"warning: {doubt}")


def _take_place(start: Start, checkpoint: Checkpoint, loader: ShardLoader, learner: Learner, size: int | None) -> None:
    """Puts the loader where a checkpoint was saved, if the run goes on from it.

    Raises ResumeMismatch, with all that differs, if it is of other data or another model, StoreError if its state is
    none.
    """
    differ = []
    try:
        if start.resumes:
            loader.load_state_dict(checkpoint.loader | ({"batches_per_step": size} if start.batches_per_step else {}))
    except ResumeMismatch as error:
        error.where = checkpoint.where
        differ.append(error)
    except ConfigError as error:
        raise damaged(checkpoint.where, f"{error.name} of its loader: {error.rule}") from error
    try:
        learner.identity.check(checkpoint.identity, checkpoint.where)
    except ResumeMismatch as error:
        differ.append(error)
    if differ:
        raise ResumeMismatch.of_all(differ)


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Keeps every other run out of the folder; the system lifts the lock when this process ends, however it ends."""
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(folder / ".lock", os.O_RDWR | os.O_CREAT, 0o644)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            fix = "Wait until it has ended, or stop it."
            raise StoreError("another process is training there", url=str(folder), fix=fix) from None
        yield
    finally:
        os.close(descriptor)


def _loader(config: TrainConfig, world: World, data: str, **options: Any) -> ShardLoader:
    return ShardLoader(
        data,
        batch_size=config.batch_size,
        batch_seconds=config.batch_seconds,
        min_seconds=config.min_seconds,
        max_seconds=config.max_seconds,
        channels=config.channels,
        sample_rate=config.sample_rate,
        seed=config.seed,
        window=config.window,
        rank=world.rank,
        world_size=world.size,
        threads=config.threads,
        schemes=config.schemes.split(",") if config.schemes else (),
        cache_dir=config.cache_dir,
        cache_bytes=config.cache_limit,
        token_file=config.token_file,
        tls_ca=config.tls_ca,
        digests=config.digests,
        device=world.device,
        on_error=config.on_error,
        **options,
    )


def _schedule(config: TrainConfig, loader: ShardLoader) -> Schedule:
    return Schedule(
        peak=config.learning_rate,
        warmup=config.warmup_amount,
        decay=config.schedule,
        total_samples=config.epochs * loader.num_samples,
        cycle=config.cycle_amount,
        cycle_growth=config.cycle_growth,
    )


def _tokenizer(config: TrainConfig, start: Start, loader: ShardLoader) -> CharTokenizer:
    if config.units is not None:
        return CharTokenizer.from_file(config.units)
    if start.checkpoint is not None:
        return CharTokenizer.saved(start.checkpoint.identity.units, start.checkpoint.where)
    return CharTokenizer.from_texts(loader.texts())


def _check_texts(config: TrainConfig, loader: ShardLoader) -> None:
    """Raises ConfigError where there is nothing to learn from. As a rule the first text tells that there is."""
    if not any(text.strip() for text in loader.texts()):
        fix = "Pack it from a list with texts; `shardpipe index --text FIELD` takes them from KEY.json."
        raise ConfigError("data", config.data, "not one of its texts holds a character", fix=fix)


def _was_own(config: TrainConfig, start: Start) -> bool:
    """Whether a checkpoint that lies elsewhere now is from where the run has had its own up to its latest start."""
    return start.checkpoint is not None and checkpoints_of(config.out).holds(start.checkpoint)


def _prepare_folder(
    config: TrainConfig,
    start: Start,
    checkpoints: Checkpoints,
    tokenizer: CharTokenizer,
    display: Display,
    *,
    foreign: bool,
    own: bool,
) -> None:
    """Makes the run's folder that of a run which has just come to `start`. Where that is another run's checkpoint, none
    of its own are of its past; where it lay elsewhere (`foreign`), it may be its own still.
    """
    folder = Path(config.out)
    with writing(folder):
        here = start.samples
        gone = [count for count in checkpoints.counts() if count > here or (foreign and count < here)]
        aside = gone if start.goes_back else []
        where = checkpoints.set_aside(aside)
    if aside:
        display.say(f"put aside the checkpoints {', '.join(map(str, aside))}, in {where}")
    cut_records(folder, start, display.say, own=own)
    tokenizer.save(folder / "units.txt")
