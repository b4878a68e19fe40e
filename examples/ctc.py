"""A small CTC model on raw audio, and what makes its inputs of samples: the same for every loop in this folder."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from shardpipe import Sample

UNITS = " 'abcdefghijklmnopqrstuvwxyz"


def collate(samples: list[Sample]) -> dict[str, Tensor]:
    """Audio [B, T], its lengths [B], labels [B, L], their lengths [B] and weights [B]; label 0 is CTC's blank."""
    audio = [torch.from_numpy(sample.audio) for sample in samples]
    labels = [torch.tensor([UNITS.index(c) + 1 for c in sample.text.lower() if c in UNITS]) for sample in samples]
    return {
        "audio": nn.utils.rnn.pad_sequence(audio, batch_first=True),
        "lengths": torch.tensor([len(a) for a in audio]),
        "labels": nn.utils.rnn.pad_sequence(labels, batch_first=True).long(),
        "label_lengths": torch.tensor([len(text) for text in labels]),
        "weights": torch.tensor([sample.weight for sample in samples]),
    }


class CTC(nn.Module):
    """A learned filterbank with a frame every 20 ms at 16 kHz, convolutions over time, a linear layer to the units."""

    def __init__(self, width: int = 64) -> None:
        super().__init__()
        self.front = nn.Conv1d(1, width, 400, stride=320, padding=200)
        self.body = nn.Sequential(
            *(layer for _ in range(2) for layer in (nn.Conv1d(width, width, 5, padding=2), nn.GELU(), nn.Dropout(0.1)))
        )
        self.head = nn.Linear(width, 1 + len(UNITS))

    def forward(
        self, audio: Tensor, lengths: Tensor, labels: Tensor, label_lengths: Tensor, weights: Tensor
    ) -> dict[str, Any]:
        """The mean loss of the samples that count; those of weight 0 fill a step."""
        hidden = self.front(audio[:, None]).abs().clamp(min=1e-5).log()
        logits = self.head(self.body(hidden).mT)
        logs, frames = logits.log_softmax(-1).transpose(0, 1), lengths // 320 + 1
        losses = F.ctc_loss(logs, labels, frames, label_lengths, reduction="none", zero_infinity=True)
        return {"loss": (losses * weights).sum() / weights.sum().clamp(min=1), "logits": logits}
