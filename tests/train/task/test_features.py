"""Features, and what SpecAugment masks."""

from __future__ import annotations

import pytest
import torch

from shardpipe.train.engines import seed_of
from shardpipe.train.task.features import LogMel, spec_augment
from tests.speech import make_audio


def test_features_of_an_utterance_do_not_depend_on_its_batch() -> None:
    features = LogMel(16000)
    short, long = (torch.from_numpy(make_audio(n, seed=n)[:, 0]) for n in (5003, 9001))
    batch = torch.zeros(2, 9001)
    batch[0, :5003], batch[1] = short, long
    together, frames = features(batch, torch.tensor([5003, 9001]))
    assert frames.tolist() == [1 + 5003 // 160, 1 + 9001 // 160]
    alone, _ = features(short[None], torch.tensor([5003]))
    torch.testing.assert_close(together[0, : frames[0]], alone[0], rtol=1e-4, atol=1e-4)
    assert not together[0, frames[0] :].any()
    assert features(torch.zeros(1, 0), torch.tensor([0]))[0].shape == (1, 1, 80)


@pytest.mark.parametrize("rate", [8000, 11025, 16000, 22050, 44100, 48000])
def test_no_mel_band_is_empty_at_any_usual_rate(rate: int) -> None:
    assert (LogMel(rate).mel.mel_scale.fb.sum(0) > 0).all()


def test_spec_augment_masks_within_its_bounds_and_follows_the_seed() -> None:
    features, frames = torch.ones(64, 200, 80), torch.full((64,), 200)
    frames[:32] = 120
    torch.manual_seed(seed_of(3, 400, 0))
    masked = spec_augment(features, frames)
    bands, spans = (masked == 0).all(1), (masked == 0).all(2)
    assert bands.sum(1).max() <= 2 * 27
    assert spans.sum(1).max() <= 2 * 10
    assert not spans[:32, 120:].any()
    assert bands.any(1).float().mean() > 0.9
    torch.manual_seed(seed_of(3, 400, 0))
    assert torch.equal(masked, spec_augment(features, frames))
    torch.manual_seed(seed_of(3, 400, 1))
    assert not torch.equal(masked, spec_augment(features, frames))
