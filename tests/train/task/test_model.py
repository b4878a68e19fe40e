"""The model and its loss."""

from __future__ import annotations

import torch

from shardpipe.train.task.model import CTCModel, ctc_losses, frames_needed


def test_the_models_frames_are_a_fourth_and_its_masks_keep_out_the_padding() -> None:
    torch.manual_seed(0)
    model = CTCModel("tiny", 7).eval()
    features, frames = torch.randn(3, 41, 80), torch.tensor([41, 40, 1])
    log_probs, out = model(features, frames)
    assert out.tolist() == [11, 10, 1]
    assert log_probs.shape == (3, 11, 7)
    torch.testing.assert_close(log_probs.exp().sum(-1), torch.ones(3, 11))
    other = features.clone()
    other[1, 40:] = 100
    torch.testing.assert_close(model(other, frames)[0], log_probs)
    assert not list(model.buffers())


def test_the_loss_of_an_utterance_too_short_for_its_text_is_zero_without_gradient() -> None:
    log_probs = torch.randn(3, 4, 5).log_softmax(-1).requires_grad_()
    targets = [[1, 1, 2], [1, 1, 1], []]
    assert [frames_needed(target) for target in targets] == [4, 5, 0]
    losses = ctc_losses(log_probs, torch.tensor([4, 4, 4]), targets, on_cpu=False)
    assert losses[0].item() > 0
    assert losses[1].item() == 0
    torch.testing.assert_close(losses[2], -log_probs[2, :, 0].sum())
    losses.sum().backward()
    assert not log_probs.grad[1].any()
    assert log_probs.grad[0].any()
    empty = ctc_losses(log_probs, torch.tensor([4, 4, 4]), [[], [], []], on_cpu=False)
    assert torch.isfinite(empty).all()
