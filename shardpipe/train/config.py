"""Every setting of a training run, checked before anything starts."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from shardpipe.errors import ConfigError
from shardpipe.settings import byte_size
from shardpipe.store import checked_url, is_url, only_local
from shardpipe.train.amount import Amount
from shardpipe.train.schedule import Decay
from shardpipe.train.validation import ONLY, figure_of, sets_of

__all__ = ["ModelSize", "PrecisionName", "TrainConfig", "checkpoints_in"]

ModelSize = Literal["tiny", "small", "medium"]
PrecisionName = Literal["fp32", "bf16", "fp16"]

_BATCH_SIZE = 16
_GROWTH_MAX = 100
_HANG_MOST = 10_000


def checkpoints_in(run: str) -> str:
    """Where a run's checkpoints lie unless it is told otherwise."""
    return str(Path(run) / "checkpoints")


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """Settings of `shardpipe-train`, as flags (--batch-size) and in a configuration file (batch_size).

    Args:
        data: Folder or URL of the dataset to train on, packed by `shardpipe pack`.
        out: Folder of the run: its configuration, metrics and checkpoints. All processes must see it.
        valid: Datasets to evaluate on after each sub-epoch: DIR, or several by name, like dev=DIR,test=DIR.
        model: Size of the Conformer; tiny trains on a CPU.
        units: File of characters and their ids, as WeNet's units.txt; without it they are taken from the data's texts.
        epochs: How often to go through the data.
        batch_size: Utterances in one process's batch; 16 if neither this nor batch_seconds is given.
        batch_seconds: Seconds of audio, padding included, in one process's batch.
        min_seconds: Leave out shorter utterances; they are counted.
        max_seconds: Leave out longer utterances; they are counted.
        channels: Which channel to train on where the audio has several, from 0 on, or their mean (mix).
        sample_rate: Resample all audio to this rate in Hz; needed where the data have several.
        sub_epochs: Parts of an epoch after each of which to evaluate and save.
        sub_epoch_samples: Samples of such a part, at most: an epoch has as few of them as that takes, all alike.
        max_sub_epochs: End this start after so many of them, with a checkpoint from which the next one goes on.
        max_minutes: End this start after the step under way at that time, with a checkpoint likewise.
        window: Utterances shuffled together; see the dataset's documentation.
        lanes: Streams that the order interleaves; chosen by the dataset's size if not given.
        seed: Decides the order, the initial model, SpecAugment and dropout.
        learning_rate: The highest learning rate.
        warmup: Progress until the highest rate is reached, like 1000steps, 50000samples or 2sub-epochs.
        schedule: How the rate falls: over the whole run or each cycle (cosine), with the root of progress, not at all,
            or when evaluations find nothing better (plateau).
        cycle: Progress after which cosine begins at the highest rate again, like 20000steps or 4sub-epochs.
        cycle_growth: How many times as long as the one before each cycle is.
        plateau_factor: By what to multiply the rate on a plateau, down to 1 % of the highest.
        plateau_patience: After how many evaluations without a better figure, that of best_by, to do so.
        weight_decay: AdamW's weight decay, on weights of two and more dimensions.
        batches_per_step: Batches of one optimizer step, all processes together, whose number may then change; kept by
            the run. By default as many as there are processes when it starts, times accumulate.
        accumulate: Batches of each process in one optimizer step.
        clip: Largest norm of the gradient.
        spec_augment: Mask random bands and spans of the features.
        engine: How processes share the model: a copy in each (ddp), or parameters, gradients and optimizer in shares
            (fsdp), for what does not fit one GPU.
        precision: Numbers of the model's forward and backward pass; fp16 is for GPUs without bf16.
        activation_checkpointing: Compute the model's layers again in the backward pass instead of keeping what they
            made: the same bits in less memory, for one more forward pass.
        compile: Compile the model's layers with torch.compile; a resumed run is then not bitwise the same.
        deterministic: Compute so that the same steps give the same bits, at some cost in speed on a GPU.
        device: Where to compute; auto takes CUDA if it is there.
        threads: Threads of each process that read and decode audio.
        cache_dir: Folder of a local disk for what was read of a dataset elsewhere; runs and processes may share it.
        cache_bytes: The most that cache_dir may take of its disk, all processes together, like 200GiB.
        on_error: What to do with samples that cannot be decoded: raise an error, or skip them; they are listed.
        save_every: Progress or time between checkpoints, like 5000samples, 200steps or 10min.
        checkpoints: Folder or URL for the checkpoints, of this run alone; by default a folder of `out`.
        keep: How many of the newest checkpoints to keep.
        keep_every: Keep for good the first checkpoint after each multiple of this progress, like 100000samples.
        keep_best: How many of the best checkpoints to keep, by what evaluation on `valid` found.
        best_by: The figure that is to be low: loss, wer or cer of the first set, or of another, like test/cer.
        resume: Go on from the run's newest checkpoint (auto), from a path's, or start in an unused folder (never).
        resume_samples: Go on at this count of consumed samples: from the run's checkpoint there, or from init_from.
        init_from: Checkpoint to take the model and the optimizer from where the run has none.
        log_samples: Write which samples every step had to keys-rank<r>.jsonl, for shardpipe-train audit.
        log_keys: Write their keys there as well, for people.
        hang_minutes: End all processes, to be started again, when one of them has begun no batch for so long; their
            stacks are in RUN/stacks.
        schemes: Kinds of URLs, with commas between, by which the data may name shards besides its own and plain ones.
        servers: Servers of the data that make the batches, with commas between or braces, like https://{a,b}:7070/NAME.
        local: Have this process make batches beside the servers, and all that no server makes.
        token_file: File with the token that servers want.
        tls_ca: File with the certificates that servers are trusted by; by default the system's.
        digests: Whether servers on which decoding gives other floats than here are refused (same) or taken (any).
    """

    data: str
    out: str
    valid: dict[str, str] | str | None = None
    model: ModelSize = "small"
    units: str | None = None
    epochs: int = 10
    batch_size: int | None = None
    batch_seconds: float | None = None
    min_seconds: float | None = None
    max_seconds: float | None = None
    channels: int | Literal["error", "mix"] = "error"
    sample_rate: int | None = None
    sub_epochs: int = 1
    sub_epoch_samples: int | None = None
    max_sub_epochs: int | None = None
    max_minutes: float | None = None
    window: int = 8192
    lanes: int | None = None
    seed: int = 0
    learning_rate: float = 1e-3
    warmup: str = "1000steps"
    schedule: Decay = "cosine"
    cycle: str | None = None
    cycle_growth: int = 1
    plateau_factor: float = 0.5
    plateau_patience: int = 2
    weight_decay: float = 0.01
    batches_per_step: int | None = None
    accumulate: int | None = None
    clip: float = 5.0
    spec_augment: bool = True
    engine: Literal["ddp", "fsdp"] = "ddp"
    precision: PrecisionName = "fp32"
    activation_checkpointing: bool = False
    compile: bool = False
    deterministic: bool = True
    device: Literal["auto", "cpu", "cuda"] = "auto"
    threads: int | None = None
    cache_dir: str | None = None
    cache_bytes: int | str | None = None
    on_error: Literal["raise", "skip"] = "raise"
    save_every: str = "10min"
    checkpoints: str | None = None
    keep: int = 3
    keep_every: str | None = None
    keep_best: int = 0
    best_by: str = "loss"
    resume: str = "auto"
    resume_samples: int | None = None
    init_from: str | None = None
    log_samples: bool = True
    log_keys: bool = False
    hang_minutes: float | None = 30.0
    schemes: str = ""
    servers: str | None = None
    local: bool = False
    token_file: str | None = None
    tls_ca: str | None = None
    digests: Literal["same", "any"] = "same"

    def __post_init__(self) -> None:
        if self.batch_size is None and self.batch_seconds is None:
            object.__setattr__(self, "batch_size", _BATCH_SIZE)
        counts = ("epochs", "sub_epochs", "sub_epoch_samples", "max_sub_epochs", "cycle_growth", "plateau_patience")
        for name in (*counts, "batches_per_step", "accumulate", "keep"):
            if (count := getattr(self, name)) is not None and count < 1:
                raise ConfigError(name, count, "it must be at least 1")
        for name in ("learning_rate", "clip", "max_minutes", "hang_minutes"):
            if (value := getattr(self, name)) is not None and not 0 < value < math.inf:
                raise ConfigError(name, value, "it must be a positive number")
        self._check_parts()
        self._check_schedule()
        if not 0 <= self.weight_decay < math.inf:
            raise ConfigError("weight_decay", self.weight_decay, "it must be a number, 0 or more")
        if self.resume_samples is not None and self.resume_samples < 0:
            raise ConfigError("resume_samples", self.resume_samples, "it must be at least 0")
        if self.resume_samples is not None and self.resume not in ("auto", "never"):
            raise ConfigError("resume_samples", self.resume_samples, f"--resume {self.resume} names a place already")
        for name in ("out", "units", "cache_dir", "token_file", "tls_ca"):
            if (place := getattr(self, name)) is not None:
                object.__setattr__(self, name, only_local(name, place))
        for name in ("checkpoints", "resume", "init_from"):
            if (place := getattr(self, name)) is not None:
                at = checked_url(name, place).rstrip("/") if is_url(place) else only_local(name, place)
                object.__setattr__(self, name, at)
        if self.checkpoints is not None and not is_url(self.checkpoints):
            # It goes into config.yaml, and is to mean the same from any folder.
            object.__setattr__(self, "checkpoints", str(Path(self.checkpoints).absolute()))
        if self.keep_best < 0:
            raise ConfigError("keep_best", self.keep_best, "it must be at least 0")
        if self.keep_interval is not None and self.keep_interval.count <= 0:
            raise ConfigError("keep_every", self.keep_every, "it must be more than nothing")
        if self.cache_limit is not None and self.cache_dir is None:
            raise ConfigError("cache_bytes", self.cache_bytes, "it needs a cache_dir")
        if self.hang_minutes is not None and self.hang_minutes > _HANG_MOST:
            raise ConfigError("hang_minutes", self.hang_minutes, f"it must be {_HANG_MOST} or less, or null for none")
        if self.log_keys and not self.log_samples:
            raise ConfigError("log_keys", True, "they are written beside the samples", fix="Give --log-samples.")
        if self.save_interval.count <= 0:
            raise ConfigError("save_every", self.save_every, "it must be more than nothing")
        _ = self.warmup_amount

    def _check_parts(self) -> None:
        """What is said of sub-epochs, and of the evaluation after each."""
        if self.sub_epoch_samples is not None and self.sub_epochs != 1:
            rule = f"sub_epochs is {self.sub_epochs}"
            fix = "Give one of the two; --sub-epochs 1 or --sub-epoch-samples null takes back what a file says."
            raise ConfigError("sub_epoch_samples", self.sub_epoch_samples, rule, fix=fix)
        if self.keep_best and not self.valid_sets:
            raise ConfigError("keep_best", self.keep_best, "which are the best is not known", fix="Give --valid.")
        _ = figure_of("best_by", self.best_by, self.valid_sets or ([] if "/" in self.best_by else [ONLY]))

    def _check_schedule(self) -> None:
        if self.schedule == "plateau" and not self.valid_sets:
            rule = "whether there is a plateau is not known"
            raise ConfigError("schedule", self.schedule, rule, fix="Give --valid, to evaluate on after each sub-epoch.")
        if not 0 < self.plateau_factor < 1:
            raise ConfigError("plateau_factor", self.plateau_factor, "it must lie between 0 and 1")
        if self.cycle is not None and self.schedule != "cosine":
            rule = f"{self.schedule} has none"
            fix = "Give --schedule cosine; --cycle null takes back what a file says."
            raise ConfigError("cycle", self.cycle, rule, fix=fix)
        if self.cycle_growth > 1 and self.cycle is None:
            raise ConfigError("cycle_growth", self.cycle_growth, "there are no cycles", fix="Give --cycle.")
        if self.cycle_growth > _GROWTH_MAX:
            raise ConfigError("cycle_growth", self.cycle_growth, f"it must be {_GROWTH_MAX} or less")
        if (cycle := self.cycle_amount) is not None and cycle.count < (2 if cycle.unit == "steps" else 1):
            raise ConfigError("cycle", self.cycle, "it must be long enough to fall in: two steps at least")

    @property
    def valid_sets(self) -> dict[str, str]:
        """What `valid` says: places by name, in their order."""
        return sets_of(self.valid)

    @property
    def best_figure(self) -> str:
        """What `best_by` says: a figure of one of the sets."""
        return figure_of("best_by", self.best_by, self.valid_sets)

    @property
    def cycle_amount(self) -> Amount | None:
        """What `cycle` says."""
        return None if self.cycle is None else Amount.parse("cycle", self.cycle, clock=False)

    @property
    def cache_limit(self) -> int | None:
        """What `cache_bytes` says."""
        return None if self.cache_bytes is None else byte_size("cache_bytes", str(self.cache_bytes))

    @property
    def checkpoints_at(self) -> str:
        """Where the run's checkpoints lie."""
        return self.checkpoints or checkpoints_in(self.out)

    @property
    def save_interval(self) -> Amount:
        """What `save_every` says."""
        return Amount.parse("save_every", self.save_every, clock=True)

    @property
    def keep_interval(self) -> Amount | None:
        """What `keep_every` says."""
        return None if self.keep_every is None else Amount.parse("keep_every", self.keep_every, clock=False)

    @property
    def warmup_amount(self) -> Amount:
        """What `warmup` says."""
        return Amount.parse("warmup", self.warmup, clock=False)
