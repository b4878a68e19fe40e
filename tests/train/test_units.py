"""The parts of training that need no run: characters, error rates, the schedule, features, the loss, the records."""

from __future__ import annotations

import json
import math
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from shardpipe.errors import ConfigError
from shardpipe.train.config import TrainConfig
from shardpipe.train.logs.display import duration
from shardpipe.train.logs.record import JsonLines, cut_back
from shardpipe.train.parallel import seed_generators
from shardpipe.train.schedule import Amount, Schedule
from shardpipe.train.task.features import LogMel, spec_augment
from shardpipe.train.task.model import CTCModel, ctc_losses, frames_needed
from shardpipe.train.task.score import ErrorCounts, edit_distance
from shardpipe.train.task.tokens import SPACE, CharTokenizer
from tests.speech import make_audio

TEXTS = st.lists(st.text(max_size=12), max_size=6)


@given(TEXTS)
def test_units_depend_on_the_texts_alone_and_give_them_back(texts: list[str]) -> None:
    tokenizer = CharTokenizer.from_texts(texts)
    assert tokenizer.units == CharTokenizer.from_texts(reversed(texts)).units
    for text in texts:
        ids = tokenizer.encode(text)
        assert tokenizer.unknown not in ids
        assert 0 not in ids
        assert tokenizer.decode(ids) == " ".join(text.split()).replace(SPACE, " ")


def test_units_file_is_wenets(tmp_path: Path) -> None:
    tokenizer = CharTokenizer.from_texts(["b a", "é日"])
    tokenizer.save(tmp_path / "units.txt")
    assert (tmp_path / "units.txt").read_text().split("\n") == [
        "<blank> 0", "<unk> 1", "a 2", "b 3", "é 4", f"{SPACE} 5", "日 6", "",
    ]  # fmt: skip
    assert CharTokenizer.from_file(tmp_path / "units.txt").units == tokenizer.units


def test_an_unknown_character_is_unk_and_shows_as_one(tmp_path: Path) -> None:
    (tmp_path / "units.txt").write_text("<blank> 0\n<unk> 1\na 2\n<sos/eos> 3\n")
    tokenizer = CharTokenizer.from_file(tmp_path / "units.txt")
    assert tokenizer.encode("axa") == [2, 1, 2]
    assert tokenizer.decode([2, 1, 3, 2]) == "a\ufffda"


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("<blank> 0\na 2\n", "line 2"),
        ("<blank> 0\n<unk> 1\nab 2\n", "'ab', not one character"),
        ("<blank> 0\na 1\n", "<unk>"),
        ("<unk> 0\n<blank> 1\n", "<blank>"),
        ("<blank> 0\n<unk> 1\na 2\na 3\n", "distinct"),
        ("<blank> 0\n<unk>\n", "line 2"),
        ("", "<blank>"),
    ],
)
def test_a_wrong_units_file_is_named_with_its_line(tmp_path: Path, text: str, says: str) -> None:
    (tmp_path / "units.txt").write_text(text)
    with pytest.raises(ConfigError, match=says) as caught:
        CharTokenizer.from_file(tmp_path / "units.txt")
    assert "units.txt" in str(caught.value)
    with pytest.raises(ConfigError, match="cannot be read"):
        CharTokenizer.from_file(tmp_path / "none.txt")


def test_collapse_merges_repeats_then_drops_blanks() -> None:
    tokenizer = CharTokenizer.from_texts(["ab"])
    a, b = tokenizer.encode("ab")
    assert tokenizer.collapse([0, a, a, 0, a, b, b, 0]) == "aab"
    assert tokenizer.collapse([]) == ""


@given(st.text("abc", max_size=8), st.text("abc", max_size=8), st.text("abc", max_size=8))
def test_edit_distance_is_a_metric_within_its_bounds(x: str, y: str, z: str) -> None:
    d = edit_distance(x, y)
    assert (d == 0) == (x == y)
    assert d == edit_distance(y, x)
    assert abs(len(x) - len(y)) <= d <= max(len(x), len(y))
    assert d <= edit_distance(x, z) + edit_distance(z, y)
    if x and y:
        cases = (edit_distance(x[1:], y) + 1, edit_distance(x, y[1:]) + 1, edit_distance(x[1:], y[1:]) + (x[0] != y[0]))
        assert d == min(cases)


def test_error_counts_are_of_words_and_of_characters_with_single_spaces() -> None:
    counts = ErrorCounts()
    counts.add("the  cat sat", "the cat sad on")
    counts.add("", "")
    assert (counts.word_errors, counts.words) == (2, 3)
    assert (counts.char_errors, counts.chars) == (4, 11)


@given(
    st.sampled_from(["cosine", "inverse-sqrt", "constant"]),
    st.sampled_from(["steps", "samples"]),
    st.integers(0, 500),
    st.integers(1, 400),
    st.integers(1, 20),
)
def test_the_rate_climbs_to_the_peak_and_never_beyond(
    decay: str, unit: str, warmup: int, steps: int, size: int
) -> None:
    schedule = Schedule(
        peak=0.5,
        warmup=Amount(count=warmup, unit=unit),  # type: ignore[arg-type]
        decay=decay,  # type: ignore[arg-type]
        total_samples=steps * size,
    )
    rates = [schedule.at(steps=i, samples=i * size) for i in range(1, steps + 1)]
    assert all(0 < rate <= 0.5 for rate in rates)
    start = warmup if unit == "steps" else math.ceil(warmup / size)
    falling = rates[max(0, start - 1) :]
    assert all(a >= b for a, b in pairwise(falling))
    if decay != "cosine":
        climbing = rates[: max(0, start - 1)]
        assert all(a < b for a, b in pairwise(climbing))
    if decay == "constant" and start <= steps:
        assert falling[-1] == 0.5
    if decay == "cosine" and start <= steps:
        assert rates[-1] == pytest.approx(0.005)


def test_the_inverse_square_root_begins_at_the_warm_ups_end() -> None:
    schedule = Schedule(peak=1.0, warmup=Amount(count=100, unit="steps"), decay="inverse-sqrt", total_samples=1)
    assert schedule.at(steps=50, samples=0) == 0.5
    assert schedule.at(steps=100, samples=0) == 1.0
    assert schedule.at(steps=400, samples=0) == 0.5


@pytest.mark.parametrize(
    ("text", "count", "unit"),
    [
        ("5000samples", 5000, "samples"),
        ("1 step", 1, "steps"),
        ("10min", 600, "seconds"),
        ("1.5h", 5400, "seconds"),
        ("90s", 90, "seconds"),
    ],
)
def test_amounts(text: str, count: float, unit: str) -> None:
    assert Amount.parse("save_every", text, clock=True) == Amount(count=count, unit=unit)  # type: ignore[arg-type]


@pytest.mark.parametrize("text", ["", "5", "steps", "-1steps", "1.5steps", "5 days", "1e3steps", "inf s"])
def test_wrong_amounts_name_the_setting_and_the_rule(text: str) -> None:
    with pytest.raises(ConfigError, match="save_every is"):
        Amount.parse("save_every", text, clock=True)
    with pytest.raises(ConfigError, match=r"5000samples or 200steps$"):
        Amount.parse("warmup", "10min", clock=False)


@pytest.mark.parametrize(
    "setting",
    [
        {"epochs": 0},
        {"accumulate": 0},
        {"keep": 0},
        {"learning_rate": 0.0},
        {"learning_rate": math.nan},
        {"clip": -1.0},
        {"weight_decay": -0.1},
        {"resume_samples": -1},
        {"resume": ""},
        {"resume": "somewhere", "resume_samples": 3},
        {"save_every": "0steps"},
        {"save_every": "soon"},
        {"warmup": "10min"},
    ],
)
def test_settings_outside_their_rule_are_refused(setting: dict[str, object]) -> None:
    with pytest.raises(ConfigError) as caught:
        TrainConfig(data="d", out="o", **setting)  # type: ignore[arg-type]
    assert caught.value.name in setting


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
    seed_generators(3, 400, 0)
    masked = spec_augment(features, frames)
    bands, spans = (masked == 0).all(1), (masked == 0).all(2)
    assert bands.sum(1).max() <= 2 * 27
    assert spans.sum(1).max() <= 2 * 10
    assert not spans[:32, 120:].any()
    assert bands.any(1).float().mean() > 0.9
    seed_generators(3, 400, 0)
    assert torch.equal(masked, spec_augment(features, frames))
    seed_generators(3, 400, 1)
    assert not torch.equal(masked, spec_augment(features, frames))


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


def test_seeds_differ_by_seed_place_and_rank() -> None:
    seen = set()
    for seed in (0, 1):
        for place in ((), (0, 0), (0, 1), (1, 0), (8, 0)):
            seed_generators(seed, *place)
            seen.add(float(torch.rand(1, dtype=torch.float64)))
    assert len(seen) == 10


def test_records_read_back_exactly_and_are_cut_back_to_a_count(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    log = JsonLines(path)
    for count in (4, 8, 8, 12):
        log.write({"event": "step", "consumed_samples": count, "loss": 0.1 + 0.2, "grad_norm": math.inf})
    log.write({"event": "valid", "consumed_samples": 12, "loss": 1.0})
    log.close()
    lines = path.read_text().splitlines()
    assert json.loads(lines[0]) == {"event": "step", "consumed_samples": 4, "loss": 0.1 + 0.2, "grad_norm": None}
    with path.open("a") as file:
        file.write('{"event": "step", "consumed_samples": 16, "lo')
    assert cut_back(path, 12) == 1
    assert path.read_text().splitlines() == lines
    assert cut_back(path, 12) == 0
    assert cut_back(path, 12, evaluated=False) == 1
    assert cut_back(path, 11) == 1
    assert path.read_text().splitlines() == lines[:3]
    assert cut_back(tmp_path / "none.jsonl", 0) == 0


def test_durations() -> None:
    assert [duration(s) for s in (0.4, 61, 3600 * 25 + 59)] == ["0:00:00", "0:01:01", "25:00:59"]
