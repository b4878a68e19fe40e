"""What learns: features, model and optimizer, and what becomes of one batch."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from shardpipe import Batch
from shardpipe.train.checkpoints import Identity
from shardpipe.train.config import TrainConfig
from shardpipe.train.engines import World, engine_for, seed_of
from shardpipe.train.task.features import MELS, LogMel, spec_augment
from shardpipe.train.task.model import CTCModel, ctc_losses, frames_needed
from shardpipe.train.task.tokens import CharTokenizer

__all__ = ["Learner", "LeftOut", "Result"]


@dataclass(frozen=True, kw_only=True)
class LeftOut:
    """An utterance that teaches nothing: the model has fewer `frames` for it than its text needs."""

    key: str
    frames: int
    needed: int


@dataclass(frozen=True, kw_only=True)
class Result:
    """What one process made of one batch. Repeats that only fill up a step (weight 0) are in none of its numbers."""

    loss: Tensor
    """Weighted sum over the utterances: a scalar."""
    weight: float
    utterances: int
    seconds: float
    """Of audio, without padding."""
    unknown_units: int
    left_out: tuple[LeftOut, ...]
    log_probs: Tensor
    """[B, G, units]."""
    frames: Tensor
    """[B], of log_probs."""


class Learner:
    """The parts that learn, on one device; the engine says how the processes share the model."""

    def __init__(self, config: TrainConfig, world: World, tokenizer: CharTokenizer, sample_rate: int) -> None:
        self.config = config
        self.tokenizer = tokenizer
        self.sample_rate = sample_rate
        self.identity = Identity(model=config.model, units=tokenizer.units, sample_rate=sample_rate)
        self._world = world
        world.seed(seed_of(config.seed))
        self.features = LogMel(sample_rate).to(world.device)
        model = CTCModel(config.model, len(tokenizer.units))
        self.engine = engine_for(config, world, model, model.blocks)
        self.model = self.engine.model
        matrices = [p for p in self.model.parameters() if p.ndim > 1]
        vectors = [p for p in self.model.parameters() if p.ndim <= 1]
        groups = [{"params": matrices, "weight_decay": config.weight_decay}, {"params": vectors, "weight_decay": 0.0}]
        self.optimizer = torch.optim.AdamW(groups, lr=0.0, betas=(0.9, 0.98))
        self.engine.settle(self._a_loss)

    def forward(self, batch: Batch, *, train: bool) -> Result:
        """Losses of a batch. In training with SpecAugment, dropout and a graph to go back through; else without."""
        device = self._world.device
        hop_frames = 1 + batch.lengths // self.features.hop
        frames = (((hop_frames + 1) // 2 + 1) // 2).tolist()
        targets = [self.tokenizer.encode(text) for text in batch.texts]
        weights = batch.weights.clone()
        real = [bool(weight) for weight in weights.tolist()]
        left_out = []
        for i, target in enumerate(targets):
            if real[i] and (needed := frames_needed(target)) > frames[i]:
                left_out.append(LeftOut(key=batch.keys[i], frames=frames[i], needed=needed))
                weights[i] = 0
        model = self.engine.shared if train else self.model
        model.train(train)
        with torch.set_grad_enabled(train):
            features, mel_frames = self.features(batch.audio, batch.lengths.to(device))
            if train and self.config.spec_augment:
                features = spec_augment(features, mel_frames)
            with self.engine.casting():
                log_probs, out_frames = model(features, mel_frames)
            deterministic = self.config.deterministic and device.type == "cuda"
            losses = ctc_losses(log_probs, out_frames, targets, on_cpu=deterministic)
            loss = (losses * weights.to(device)).sum()
        unknown = self.tokenizer.unknown
        return Result(
            loss=loss,
            weight=float(weights.sum()),
            utterances=sum(real),
            seconds=float(batch.lengths[batch.weights > 0].sum()) / self.sample_rate,
            unknown_units=sum(target.count(unknown) for i, target in enumerate(targets) if real[i]),
            left_out=tuple(left_out),
            log_probs=log_probs,
            frames=out_frames,
        )

    def _a_loss(self) -> Tensor:
        frames = torch.full((1,), 16, device=self._world.device)
        log_probs: Tensor = self.engine.shared(torch.zeros(1, 16, MELS, device=self._world.device), frames)[0]
        return log_probs.sum()
