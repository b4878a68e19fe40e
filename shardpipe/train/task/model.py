"""A Conformer encoder with a CTC output, and its loss for each utterance."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchaudio.models import Conformer

from shardpipe.train.config import ModelSize
from shardpipe.train.task.features import MELS, frame_mask

__all__ = ["SIZES", "CTCModel", "Size", "ctc_losses", "frames_needed"]


@dataclass(frozen=True, kw_only=True)
class Size:
    """What a model of one name is made of."""

    width: int
    layers: int
    heads: int
    hidden: int
    kernel: int


# small and medium are S and M of Gulati et al., "Conformer" (Interspeech 2020), but for the decoder.
SIZES: dict[ModelSize, Size] = {
    "tiny": Size(width=96, layers=3, heads=4, hidden=192, kernel=15),
    "small": Size(width=144, layers=16, heads=4, hidden=576, kernel=31),
    "medium": Size(width=256, layers=16, heads=4, hidden=1024, kernel=31),
}


class CTCModel(nn.Module):
    """Two strided convolutions (a frame every 40 ms), torchaudio's Conformer, and a linear layer to the units.

    It has GroupNorm where a Conformer usually has BatchNorm, so there are no running statistics for ranks to disagree
    on. torchaudio's convolution modules see the padding: an utterance's output depends a little on how far it is
    padded, though never on which other utterances it is batched with.
    """

    def __init__(self, size: ModelSize, units: int) -> None:
        super().__init__()
        shape = SIZES[size]
        self.subsample = nn.ModuleList(
            nn.Conv1d(channels, shape.width, 3, stride=2, padding=1) for channels in (MELS, shape.width)
        )
        self.encoder = Conformer(
            shape.width,
            shape.heads,
            shape.hidden,
            shape.layers,
            shape.kernel,
            dropout=0.1,
            use_group_norm=True,
        )
        self.output = nn.Linear(shape.width, units)

    @property
    def blocks(self) -> list[nn.Module]:
        """The Conformer's layers: most of the parameters and activations."""
        return list(self.encoder.conformer_layers)

    def forward(self, features: Tensor, frames: Tensor) -> tuple[Tensor, Tensor]:
        """[B, F, 80] and frames [B] to log-probabilities [B, G, units], float32, and their frames [B], about F / 4.

        F must be the largest of `frames`.
        """
        x = features
        for convolution in self.subsample:
            x = F.silu(convolution(x.transpose(1, 2)).transpose(1, 2))
            frames = (frames + 1) // 2
            x = x * frame_mask(frames, x.shape[1])
        x, _ = self.encoder(x, frames)
        return self.output(x).float().log_softmax(-1), frames


def frames_needed(target: list[int]) -> int:
    """The frames that CTC needs for a target: one a unit, and a blank between equal neighbours."""
    return len(target) + sum(a == b for a, b in pairwise(target))


def ctc_losses(log_probs: Tensor, frames: Tensor, targets: list[list[int]], *, on_cpu: bool) -> Tensor:
    """The negative log-likelihood of each target, [B], on the device of `log_probs` [B, G, units]; unit 0 is the blank.

    An utterance with fewer frames than `frames_needed` has loss 0 and no gradient: the caller counts these. `on_cpu`
    takes a GPU batch's loss on the CPU: CUDA's backward pass adds in no fixed order.
    """
    device = torch.device("cpu") if on_cpu else log_probs.device
    flat = torch.tensor([unit for target in targets for unit in target], dtype=torch.long, device=device)
    losses = F.ctc_loss(
        log_probs.transpose(0, 1).to(device),
        flat,
        frames.to(device),
        torch.tensor([len(target) for target in targets], device=device),
        reduction="none",
        zero_infinity=True,
    )
    return losses.to(log_probs.device)
