"""A model on all processes of a run, and what a training step does to it."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer
from torch.utils.checkpoint import checkpoint

from shardpipe.train.config import TrainConfig
from shardpipe.train.engines.precision import Precision
from shardpipe.train.engines.world import World

__all__ = ["Engine", "engine_for"]


class Engine:
    """One process by itself. `model` has the parameters; `shared` is what a training step calls."""

    def __init__(self, config: TrainConfig, world: World, model: nn.Module) -> None:
        self.model = self.shared = model
        self.precision = Precision(config.precision, world.device)
        self._world = world
        self._clip = config.clip

    def casting(self) -> AbstractContextManager[None]:
        """Around a forward pass, in training or not."""
        return self.precision.autocast()

    def accumulating(self, later: bool) -> AbstractContextManager[None]:
        """Around a forward and backward pass; `later` says that another one of the same step follows."""
        del later
        return nullcontext()

    def settle(self, compute: Callable[[], Tensor]) -> None:
        """Before the first step, and before a checkpoint is loaded; `compute` makes a scalar of what `shared` gives."""

    def backward(self, loss: Tensor) -> None:
        """Adds the gradient of a loss, a scalar, to what the step has so far."""
        self.precision.scaler.scale(loss).backward()  # type: ignore[no-untyped-call]

    def update(self, optimizer: Optimizer, *, weight: float, rate: float) -> float:
        """Steps with the gradient of the losses' sum divided by their `weight`, that of all processes together.

        Returns the gradient's norm before clipping. If it is not finite, or there is no weight, nothing is changed.
        """
        norm, scaler = math.nan, self.precision.scaler
        if weight > 0:
            parameters = [p for group in optimizer.param_groups for p in group["params"]]
            scaler.unscale_(optimizer)
            # Gradients are averaged over the processes, where a sum is wanted.
            torch._foreach_mul_([p.grad for p in parameters if p.grad is not None], self._world.size / weight)
            total = nn.utils.clip_grad_norm_(parameters, self._clip)
            norm = float(total.full_tensor() if isinstance(total, DTensor) else total)
            if math.isfinite(norm):
                for group in optimizer.param_groups:
                    group["lr"] = rate
                scaler.step(optimizer)
            scaler.update()
        optimizer.zero_grad()
        return norm


class _Replicated(Engine):
    """Every process has the model, and gradients are averaged in a step's last backward pass."""

    def __init__(self, config: TrainConfig, world: World, model: nn.Module) -> None:
        super().__init__(config, world, model)
        device_ids = [world.device] if world.device.type == "cuda" else None
        self.shared = self._parallel = DistributedDataParallel(model, device_ids=device_ids)

    def accumulating(self, later: bool) -> AbstractContextManager[None]:
        return self._parallel.no_sync() if later else nullcontext()

    def settle(self, compute: Callable[[], Tensor]) -> None:
        """Past the first backward pass, after which DistributedDataParallel lays out its buckets anew: the layout
        decides in which order gradients are added up, so a resumed run has to begin with the later one.
        """
        for _ in range(2):
            compute().backward()  # type: ignore[no-untyped-call]
        self.model.zero_grad()


class _Sharded(Engine):
    """Every process has a share of each parameter, gradient and optimizer state, by FSDP2's `fully_shard`: a block is
    gathered when it computes.

    Gradients are shared out after every backward pass. To keep a step's would take the memory that sharding saves.
    """

    def __init__(self, config: TrainConfig, world: World, model: nn.Module, blocks: Sequence[nn.Module]) -> None:
        super().__init__(config, world, model)
        mesh = init_device_mesh(world.device.type, (world.size,))
        for module in (*blocks, model):  # from the inside: the model takes what is in no block
            fully_shard(module, mesh=mesh, mp_policy=self.precision.policy())

    def casting(self) -> AbstractContextManager[None]:
        return nullcontext()  # what it gathers, it casts


def engine_for(config: TrainConfig, world: World, model: nn.Module, blocks: Sequence[nn.Module]) -> Engine:
    """The engine that a run's settings name, with the model, which lies in the processor's memory until then.

    `blocks` are modules of it that hold most of its parameters and activations, and compute one after another: the
    units that are gathered, computed again and compiled.
    """
    for block in blocks:
        if config.activation_checkpointing:
            block.forward = partial(checkpoint, block.forward, use_reentrant=False)
        if config.compile:
            block.compile(dynamic=True)
    if config.engine == "fsdp":
        return _Sharded(config, world, model, blocks)
    model.to(world.device)
    return _Replicated(config, world, model) if world.size > 1 else Engine(config, world, model)
