"""What ShardLoader hands over, and how it behaves when something goes wrong or stops early."""

from __future__ import annotations

import gc
import os
import shutil
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from shardpipe import Batch, Sample, ShardLoader
from shardpipe.audio import decode, to_mono
from shardpipe.dataset import Index
from shardpipe.errors import AudioError, ConfigError, ShardError, StoreError
from shardpipe.loading.making import Form
from shardpipe.loading.read import Reader, SampleRow, coalesce, extras_of, rows_of
from shardpipe.store import CountingStore, LocalStore
from tests.speech import pack_speech

SAMPLES = 30


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return pack_speech(tmp_path_factory.mktemp("loader"), SAMPLES, shard_samples=7, seconds=(0.05, 0.3))


def sample_of(data: Path, key: str) -> tuple[SampleRow, bytes]:
    """A sample's row, and its payload straight from the shard."""
    number = int(key.removeprefix("utt"))
    (row,) = rows_of(Index.load(str(data)), np.array([number // 7]), np.array([number % 7]))
    return row, LocalStore(data).read(row.shard_name, row.audio_offset, row.audio_size)


def louder(sample: Sample, rng: np.random.Generator) -> Sample:
    sample.audio = sample.audio * np.float32(rng.uniform(0.1, 0.9))
    return sample


def failing(sample: Sample, rng: np.random.Generator) -> Sample:
    raise RuntimeError("no such effect")


def keys_of(samples: list[Sample]) -> list[str]:
    return [sample.key for sample in samples]


def same(one: Batch, other: Batch) -> bool:
    return one.keys == other.keys and torch.equal(one.audio, other.audio) and torch.equal(one.weights, other.weights)


def test_a_batch_holds_what_was_packed(data: Path) -> None:
    for batch in ShardLoader(data, batch_size=4, shuffle=False):
        assert batch.audio.dtype == torch.float32
        assert batch.audio.shape == (len(batch.keys), int(batch.lengths.max()))
        assert batch.lengths.dtype == torch.int64
        assert batch.weights.tolist() == [1.0] * len(batch.keys)
        assert batch.audio.abs().max() <= 1
        assert (batch.sample_rate, batch.epoch) == (16000, 0)
        for i, key in enumerate(batch.keys):
            row, payload = sample_of(data, key)
            assert (row.key, row.text, extras_of(row)) == (key, batch.texts[i], batch.extras[i])
            length = int(batch.lengths[i])
            assert np.array_equal(batch.audio[i, :length].numpy(), to_mono(decode(payload, row.codec)))
            assert not batch.audio[i, length:].any(), "padding is silence"


def test_without_shuffling_samples_come_as_packed(data: Path) -> None:
    keys = [key for batch in ShardLoader(data, batch_size=4, shuffle=False) for key in batch.keys]
    assert keys == [f"utt{i:05d}" for i in range(SAMPLES)]


def test_int16_is_the_same_audio(data: Path) -> None:
    floats = list(ShardLoader(data, batch_size=4))
    ints = list(ShardLoader(data, batch_size=4, dtype="int16"))
    assert ints[0].audio.dtype == torch.int16
    for one, other in zip(floats, ints):
        assert torch.equal(one.audio * 32768, other.audio.float())


def test_a_batch_by_seconds_keeps_its_budget(data: Path) -> None:
    batches = list(ShardLoader(data, batch_seconds=0.8, window=16))
    assert all(batch.audio.numel() <= 0.8 * 16000 for batch in batches)
    assert sum(len(batch.keys) for batch in batches) == SAMPLES


def test_a_collate_of_ones_own(data: Path) -> None:
    batches = list(ShardLoader(data, batch_size=4, shuffle=False, collate=keys_of))
    assert batches[0] == [f"utt{i:05d}" for i in range(4)]


def test_repeats_weigh_nothing(data: Path) -> None:
    loader = ShardLoader(data, batch_size=4, rank=4, world_size=5)
    weights = [batch.weights.tolist() for batch in loader]
    assert loader.consumed_samples == SAMPLES
    assert [sum(w) for w in weights] == [4, 0]


def test_the_next_for_goes_on(data: Path) -> None:
    loader = ShardLoader(data, batch_size=4)
    first = [next(iter(loader)).keys for _ in range(3)]
    assert first == [batch.keys for batch in ShardLoader(data, batch_size=4)][:3]
    assert loader.consumed_samples == 12


def test_a_second_for_ends_the_first(data: Path) -> None:
    loader = ShardLoader(data, batch_size=4)
    one = iter(loader)
    next(one)
    next(iter(loader))
    with pytest.raises(RuntimeError, match="another `for`"):
        next(one)


def pipeline_threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("shardpipe")]


def open_files(folder: Path) -> list[str]:
    links = [Path("/proc/self/fd", name) for name in os.listdir("/proc/self/fd")]  # noqa: PTH208
    return [str(link.readlink()) for link in links if link.is_symlink() and str(folder) in str(link.readlink())]


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="the system does not list open files")
def test_no_file_is_left_open(data: Path) -> None:
    loader = ShardLoader(data, batch_size=4)
    batches = iter(loader)
    next(batches)
    assert open_files(data)
    batches.close()
    assert not open_files(data)
    assert list(loader)
    assert not open_files(data)


def test_nothing_is_left_running(data: Path) -> None:
    for _batch in ShardLoader(data, batch_size=4, threads=3):
        assert pipeline_threads()
        break
    del _batch
    gc.collect()
    assert not pipeline_threads()
    assert list(ShardLoader(data, batch_size=4, threads=3))
    assert not pipeline_threads()
    with pytest.raises(RuntimeError):
        list(ShardLoader(data, batch_size=4, transform=failing))
    assert not pipeline_threads()


def test_a_failing_transform_names_the_sample(data: Path) -> None:
    with pytest.raises(RuntimeError, match="no such effect") as error:
        list(ShardLoader(data, batch_size=4, shuffle=False, transform=failing))
    assert "'utt00000' in epoch 0" in error.value.__notes__[0]


@pytest.mark.parametrize("audio", [np.zeros((4, 2), np.float32), np.zeros(4, np.int16)])
def test_a_transform_that_returns_something_else(data: Path, audio: Any) -> None:
    def odd(sample: Sample, rng: np.random.Generator) -> Sample:
        sample.audio = audio
        return sample

    with pytest.raises(ValueError, match="of sample 'utt00000' is .* but it must be float32"):
        list(ShardLoader(data, batch_size=4, shuffle=False, transform=odd))


def test_integers_that_would_wrap_are_refused(data: Path) -> None:
    def wide(sample: Sample, rng: np.random.Generator) -> Sample:
        sample.audio = sample.audio.astype(np.int32) * 1000
        return sample

    with pytest.raises(ValueError, match=r"'utt00000' is int32 \[\d+\], but it must be int16 \[T\]"):
        list(ShardLoader(data, batch_size=4, shuffle=False, dtype="int16", transform=wide))


def test_a_transform_that_returns_no_sample(data: Path) -> None:
    def forgetful(sample: Sample, rng: np.random.Generator) -> Any:
        sample.audio = -sample.audio

    with pytest.raises(TypeError, match="returns a Sample, and this one NoneType") as error:
        list(ShardLoader(data, batch_size=4, shuffle=False, transform=forgetful))
    assert "'utt00000' in epoch 0" in error.value.__notes__[0]


@pytest.mark.parametrize("name", ["transform", "collate"])
def test_what_cannot_travel_to_workers_is_refused_at_once(data: Path, name: str) -> None:
    with pytest.raises(ConfigError, match=f"{name} is .*lambda.* it must pickle.*top level of a module"):
        ShardLoader(data, batch_size=4, workers=2, **{name: lambda *given: given[0]})


def damaged(data: Path, tmp_path: Path, key: str) -> Path:
    """A copy of the dataset with one byte of a sample's audio flipped."""
    copy = tmp_path / "copy"
    shutil.copytree(data, copy)
    row, _ = sample_of(copy, key)
    with open(copy / row.shard_name, "r+b") as file:
        file.seek(row.audio_offset + row.audio_size // 2)
        byte = file.read(1)[0]
        file.seek(-1, 1)
        file.write(bytes([byte ^ 1]))
    return copy


def test_a_flipped_byte_raises(data: Path, tmp_path: Path) -> None:
    with pytest.raises(ShardError, match="'utt00012'.*CRC-32.*shardpipe verify") as error:
        list(ShardLoader(damaged(data, tmp_path, "utt00012"), batch_size=4))
    assert error.value.key == "utt00012"


def test_a_flipped_byte_can_be_skipped(data: Path, tmp_path: Path) -> None:
    loader = ShardLoader(damaged(data, tmp_path, "utt00012"), batch_size=4, on_error="skip", shuffle=False)
    weights = {key: weight for batch in loader for key, weight in zip(batch.keys, batch.weights.tolist())}
    assert [key for key, weight in weights.items() if not weight] == ["utt00012"]
    assert [(s.key, s.epoch) for s in loader.skipped] == [("utt00012", 0)]
    assert "CRC-32" in loader.skipped[0].reason
    assert loader.consumed_samples == len(weights) == SAMPLES


def test_what_fills_an_epochs_last_step_is_not_listed_again(data: Path, tmp_path: Path) -> None:
    folder = damaged(data, tmp_path, "utt00000")
    ranks = [
        ShardLoader(folder, batch_size=SAMPLES - 1, on_error="skip", shuffle=False, rank=rank, world_size=4)
        for rank in range(4)
    ]
    weights = [{key: w for b in loader for key, w in zip(b.keys, b.weights.tolist())} for loader in ranks]
    assert sum("utt00000" in of_rank for of_rank in weights) == 2, "one repeats it"
    assert [s.key for loader in ranks for s in loader.skipped] == ["utt00000"]


def test_what_is_counted_begins_anew_with_a_state(data: Path, tmp_path: Path) -> None:
    loader = ShardLoader(damaged(data, tmp_path, "utt00012"), batch_size=4, on_error="skip", max_seconds=0.25)
    state = loader.state_dict()
    list(loader)
    counted = loader.num_excluded, len(loader.skipped)
    loader.load_state_dict(state)
    assert (loader.num_excluded, loader.skipped) == (0, [])
    list(loader)
    assert (loader.num_excluded, len(loader.skipped)) == counted
    assert counted[0] > 0


def test_a_missing_shard_is_never_skipped(data: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(data, copy)
    next(iter(copy.glob("*.tar"))).unlink()
    with pytest.raises(StoreError, match="no such file"):
        list(ShardLoader(copy, batch_size=4, on_error="skip"))


@pytest.mark.parametrize("key", ["utt00000", "utt00029"])
def test_the_decoder_must_agree_with_the_index(data: Path, key: str) -> None:
    row, payload = sample_of(data, key)
    for frames in (row.frames - 1, row.frames + 1):
        with pytest.raises(AudioError, match=f"'{key}'.*{row.frames} frames decoded, {frames} expected"):
            Form().decode(row, payload, np.empty(frames, np.float32))


def test_neighbours_are_read_together(data: Path) -> None:
    index = Index.load(str(data))
    rows = rows_of(index, np.array([0, 2, 0, 0, 0]), np.array([3, 1, 1, 2, 6]))
    assert [piece.rows for piece in coalesce(rows, range(5))] == [(2, 3, 0), (4,), (1,)]
    assert [piece.rows for piece in coalesce(rows, [0, 2])] == [(2,), (0,)]
    store = CountingStore(LocalStore(data))
    payloads = dict(Reader(store, index.shards).payloads(rows, {4: b"fetched before"}))
    whole = [LocalStore(data).read(row.shard_name, row.audio_offset, row.audio_size) for row in rows]
    assert [bytes(payloads[i]) for i in range(5)] == [*whole[:4], b"fetched before"]
    assert len(store.reads) == 2


@pytest.mark.parametrize(
    ("options", "name"),
    [
        ({}, "batch_size"),
        ({"batch_size": 4, "batch_seconds": 3}, "batch_size"),
        ({"batch_size": 0}, "batch_size"),
        ({"batch_seconds": -1.0}, "batch_seconds"),
        ({"batch_size": 4, "rank": 2, "world_size": 2}, "rank"),
        ({"batch_size": 4, "resume_samples": -1}, "resume_samples"),
        ({"batch_size": 4, "seed": -1}, "seed"),
        ({"batch_size": 4, "lanes": 0}, "lanes"),
        ({"batch_size": 4, "window": 0}, "window"),
        ({"batch_size": 4, "sub_epochs": 0}, "sub_epochs"),
        ({"batch_size": 4, "sub_epoch_samples": 0}, "sub_epoch_samples is 0, but it must be at least 1"),
        ({"batch_size": 4, "sub_epoch_samples": 9, "sub_epochs": 2}, "sub_epoch_samples is 9, but sub_epochs is 2"),
        ({"batch_size": 4, "sub_epoch_samples": 9, "repeat": False}, "repeat is False, but every pass is a whole one"),
        ({"batch_size": 4, "dtype": "float64"}, "dtype"),
        ({"batch_size": 4, "on_error": "ignore"}, "on_error"),
        ({"batch_size": 4, "min_seconds": 3, "max_seconds": 2}, "max_seconds"),
        ({"batch_size": "4"}, "batch_size is '4', but it must be a whole number"),
        ({"batch_seconds": "60"}, "batch_seconds is '60', but it must be a number"),
        ({"batch_size": 4, "max_seconds": [2]}, "max_seconds is .*, but it must be a number"),
        ({"batch_seconds": 10**400}, "batch_seconds is 1000.*, but it must be a number"),
        ({"batch_size": 4, "transform": "crop"}, "transform is 'crop', but it must be a function"),
        ({"batch_size": 4, "device": 2.5}, "device is 2.5, but it must be cpu or cuda"),
        ({"batch_size": 4, "threads": "2"}, "threads is '2', but it must be a whole number"),
        ({"batch_size": 4, "threads": 0}, "threads is 0, but it must be at least 1"),
        ({"batch_size": 4, "shuffle": "no"}, "shuffle is 'no', but it must be True or False"),
        ({"batch_size": 4, "cache_dir": ""}, "cache_dir is '', but it must be a path of this machine"),
        ({"batch_size": 4, "rank": "1"}, "rank is '1', but it must be a number, \"auto\", or a dimension"),
        ({"batch_size": 4, "rank": "auto", "world_size": 2}, 'world_size is 2, but rank="auto" finds it'),
        ({"batch_size": 4, "world_size": 2}, "rank is None, but it must be given, as world_size is 2"),
        ({"batch_size": 4, "repeat": False, "sub_epochs": 2}, "repeat is False, but every pass is a whole one"),
        ({"batch_size": 4, "repeat": False, "resume_samples": 2}, "repeat is False, but every pass begins anew"),
        ({"batch_size": 4, "channels": "both"}, "channels is 'both', but it must be"),
        ({"batch_size": 4, "channels": -1}, "channels is -1, but it must be"),
        ({"batch_size": 4, "channels": True}, "channels is True, but it must be a whole number"),
        ({"batch_size": 4, "rank": 0}, "world_size is None, but it must be given with rank, which is 0"),
        ({"batch_size": 4, "rank": True, "world_size": 2}, "rank is True, but it must be a whole number"),
        ({"batch_size": 4, "sample_rate": 0}, "sample_rate is 0, but it must be at least 1"),
        ({"batch_size": 4, "sample_rate": 10**7}, "sample_rate is 10000000, but it must be 1000000 Hz or less"),
        ({"batch_size": 4, "cache_dir": "c", "cache_bytes": "10GiB"}, "cache_bytes is '10GiB', but it must be a whole"),
    ],
)
def test_settings_are_checked_at_once(data: Path, options: dict[str, Any], name: str) -> None:
    with pytest.raises(ConfigError, match=name):
        ShardLoader(data, **options)


def test_a_sample_longer_than_the_budget_is_named(data: Path) -> None:
    with pytest.raises(ConfigError, match=r"batch_seconds is 0.1, but the sample 'utt\d+' alone lasts"):
        list(ShardLoader(data, batch_seconds=0.1))


def test_a_dataset_of_one(tmp_path: Path) -> None:
    one = pack_speech(tmp_path, 1)
    for options in ({"batch_size": 4}, {"batch_seconds": 5.0}):
        loader = ShardLoader(one, **options)
        assert [batch.keys for batch in loader] == [["utt00000"]]
        assert (loader.epoch, loader.consumed_samples, len(loader)) == (1, 1, 1)


def test_no_dataset_there(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="shardindex.json"):
        ShardLoader(tmp_path, batch_size=4)


HALF_WAY = """
import sys
import numpy
from shardpipe import ShardLoader
from shardpipe.store import LocalStore, SlowStore

def passed(sample, rng):
    return sample

if __name__ == "__main__":
    data, cache, kind = sys.argv[1:]
    options = {"slow": {"cache_dir": cache}, "workers": {"workers": 1, "transform": passed}}.get(kind, {})
    loader = ShardLoader(SlowStore(LocalStore(data), 0.01) if kind == "slow" else data, batch_size=2, **options)
    loop = iter(loader)
    # Where it lives on until the modules go, one after the other.
    numpy.kept = [loader, loop, next(loop)]
"""


@pytest.mark.parametrize("kind", ["threads", "slow", "workers"])
def test_a_script_that_leaves_a_loop_half_way_ends_without_a_word(data: Path, tmp_path: Path, kind: str) -> None:
    script = tmp_path / "script.py"
    script.write_text(HALF_WAY)
    done = subprocess.run(
        [sys.executable, str(script), str(data), str(tmp_path / "cache"), kind], capture_output=True, text=True
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


@pytest.mark.parametrize(
    ("largest", "parts"), [(1, SAMPLES), (7, -(-SAMPLES // 7)), (SAMPLES - 1, 2), (SAMPLES, 1), (10**9, 1)]
)
def test_sub_epochs_of_so_many_samples_are_as_few_as_that_takes(data: Path, largest: int, parts: int) -> None:
    loader = ShardLoader(data, batch_size=1, sub_epoch_samples=largest)
    alike = ShardLoader(data, batch_size=1, sub_epochs=parts)
    assert loader.sub_epochs == alike.sub_epochs == parts
    sizes = []
    while loader.epoch == 0:
        assert [batch.keys for batch in loader] == [batch.keys for batch in alike]
        sizes.append(loader.consumed_samples - sum(sizes))
    assert sum(sizes) == SAMPLES
    assert max(sizes) <= largest
    assert max(sizes) - min(sizes) <= 1
