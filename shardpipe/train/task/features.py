"""Log-mel features and SpecAugment, computed by the batch on the device that trains."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torchaudio.transforms import MelSpectrogram

__all__ = ["MELS", "LogMel", "frame_mask", "spec_augment"]

MELS = 80


class LogMel(nn.Module):
    """80 log-mel energies, 25 ms windows every 10 ms, each band normalised over the utterance.

    An utterance's features do not depend on what it is batched with: padding is silence before the transform, is left
    out of the mean and the deviation, and is 0 afterwards.
    """

    def __init__(self, sample_rate: int) -> None:
        super().__init__()
        window = sample_rate * 25 // 1000
        self.hop = sample_rate // 100
        self.mel = MelSpectrogram(
            sample_rate,
            # Below 512 points a low rate leaves some of the 80 bands empty.
            n_fft=max(512, 1 << (window - 1).bit_length()),
            win_length=window,
            hop_length=self.hop,
            n_mels=MELS,
            pad_mode="constant",
        )

    @torch.no_grad()
    def forward(self, audio: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """[B, T] samples and their lengths [B] to features [B, F, 80] and their frames [B], 1 + length // hop."""
        frames = 1 + lengths // self.hop
        energies = self.mel(audio if audio.shape[1] else audio.new_zeros(len(audio), 1))
        logs = (energies + 1e-6).log().transpose(1, 2)
        mask = frame_mask(frames, logs.shape[1])
        count = frames[:, None, None]
        mean = (logs * mask).sum(1, keepdim=True) / count
        centred = (logs - mean) * mask
        deviation = (centred.square().sum(1, keepdim=True) / count).sqrt()
        return centred / (deviation + 1e-3), frames


def frame_mask(frames: Tensor, length: int) -> Tensor:
    """[B, length, 1], true where a frame belongs to its utterance."""
    return (torch.arange(length, device=frames.device) < frames[:, None])[:, :, None]


def spec_augment(features: Tensor, frames: Tensor, *, bands: int = 2, spans: int = 2) -> Tensor:
    """Sets random bands of up to 27 mels and random spans of up to 5 % of the frames to the mean, 0.

    After Park et al., "SpecAugment" (Interspeech 2019), without time warping. Draws from the device's default
    generator, which the loop seeds at every step.
    """
    _, length, mels = features.shape
    every_mel = torch.full_like(frames, mels)
    masked = _spans(every_mel, mels, bands, every_mel.clamp(max=27))[:, None, :]
    masked = masked | _spans(frames, length, spans, frames // 20)[:, :, None]
    return features.masked_fill(masked, 0.0)


def _spans(extent: Tensor, length: int, count: int, widest: Tensor) -> Tensor:
    """[B, length], true inside `count` random spans, each of 0..widest places within the first `extent`."""
    draws = torch.rand(2, len(extent), count, device=extent.device)
    widths = (draws[0] * (widest[:, None] + 1)).long()
    starts = (draws[1] * (extent[:, None] - widths + 1)).long()
    places = torch.arange(length, device=extent.device)[:, None]
    inside = (places >= starts[:, None, :]) & (places < (starts + widths)[:, None, :])
    return inside.any(-1)
