"""What learns: features, model and optimizer, and what they do with one batch."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from shardpipe import Batch
from shardpipe.train.checkpoints import Identity
from shardpipe.train.config import TrainConfig
from shardpipe.train.parallel import World, seed_generators
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
    """The parts that learn, on one device; `model` is bare, `shared` exchanges gradients between the processes."""

    def __init__(self, config: TrainConfig, world: World, tokenizer: CharTokenizer, sample_rate: int) -> None:
        self.config = config
        self.tokenizer = tokenizer
        self.sample_rate = sample_rate
        self.identity = Identity(model=config.model, units=tokenizer.units, sample_rate=sample_rate)
        self._world = world
        seed_generators(config.seed)
        self.features = LogMel(sample_rate).to(world.device)
        self.model: nn.Module = CTCModel(config.model, len(tokenizer.units)).to(world.device)
        self.shared = world.wrap(self.model)
        matrices = [p for p in self.model.parameters() if p.ndim > 1]
        vectors = [p for p in self.model.parameters() if p.ndim <= 1]
        groups = [{"params": matrices, "weight_decay": config.weight_decay}, {"params": vectors, "weight_decay": 0.0}]
        self.optimizer = torch.optim.AdamW(groups, lr=0.0, betas=(0.9, 0.98))
        self._parameters = [*matrices, *vectors]
        self._settle()

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
        self.shared.train(train)
        with torch.set_grad_enabled(train):
            features, mel_frames = self.features(batch.audio, batch.lengths.to(device))
            if train and self.config.spec_augment:
                features = spec_augment(features, mel_frames)
            with torch.autocast(device.type, torch.bfloat16, enabled=self.config.precision == "bf16"):
                log_probs, out_frames = (self.shared if train else self.model)(features, mel_frames)
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

    def update(self, weight: float, rate: float) -> float:
        """Steps with the gradient of the losses' sum divided by their `weight`, that of all processes together.

        Returns the gradient's norm before clipping. If it is not finite, or there is no weight, nothing is changed.
        """
        norm = math.nan
        if weight > 0:
            # DistributedDataParallel has averaged over the processes where a sum is wanted.
            gradients = [p.grad for p in self._parameters if p.grad is not None]
            torch._foreach_mul_(gradients, self._world.size / weight)
            norm = float(nn.utils.clip_grad_norm_(self._parameters, self.config.clip))
            if math.isfinite(norm):
                for group in self.optimizer.param_groups:
                    group["lr"] = rate
                self.optimizer.step()
        self.optimizer.zero_grad()
        return norm

    def _settle(self) -> None:
        """Takes DistributedDataParallel past its first backward pass, after which it lays out its buckets anew.

        The layout decides in which order gradients are added up, so a resumed run has to begin with the later one.
        """
        if self.shared is not self.model:
            for _ in range(2):
                frames = torch.full((1,), 16, device=self._world.device)
                log_probs, _ = self.shared(torch.zeros(1, 16, MELS, device=self._world.device), frames)
                log_probs.sum().backward()
            self.optimizer.zero_grad()
