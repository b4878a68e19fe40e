"""The loader in loops that are not ours: what is obvious works, or one clear error says what to do instead."""

from __future__ import annotations

import copy
import json
import pickle
import subprocess
import sys
import textwrap
from collections.abc import Iterator, Mapping
from dataclasses import asdict, replace
from functools import partial, wraps
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning_utilities.core.apply_func import apply_to_collection
from torch.utils.data import DataLoader, IterableDataset, default_convert

from shardpipe import Batch, Place, Sample, ShardLoader
from shardpipe.dataset import Index
from shardpipe.errors import ConfigError
from shardpipe.pack import pack
from tests.speech import make_bytes, pack_speech

SAMPLES = 40
OPTIONS: dict[str, Any] = {"batch_size": 4, "window": 8, "lanes": 2}
FIELDS = [
    *("audio", "lengths", "weights", "keys", "ordinals", "texts", "extras", "sample_rate"),
    *("epoch", "consumed_samples", "state", "ends_step", "seed"),
]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return pack_speech(tmp_path_factory.mktemp("loops"), SAMPLES, shard_samples=9, seconds=(0.05, 0.2))


class Wrapped(IterableDataset[Batch]):
    def __init__(self, loader: ShardLoader) -> None:
        self.loader = loader

    def __iter__(self) -> Iterator[Batch]:
        return iter(self.loader)


@pytest.mark.parametrize("num_workers", [0, 1, 2])
def test_put_into_a_torch_data_loader(data: Path, num_workers: int) -> None:
    for options in ({}, {"batch_size": None}, {"batch_size": 4})[: None if num_workers == 0 else 1]:
        dataloader: Any = DataLoader(ShardLoader(data, **OPTIONS), num_workers=num_workers, **options)  # type: ignore[arg-type]
        with pytest.raises(TypeError, match="iterate over it itself, instead of putting it into a torch DataLoader"):
            list(dataloader)


def test_wrapped_into_a_dataset_without_workers(data: Path) -> None:
    loader = ShardLoader(data, **OPTIONS)
    batches = list(DataLoader(Wrapped(loader), batch_size=None))
    expected = list(ShardLoader(data, **OPTIONS))
    assert [list(batch.keys) for batch in batches] == [list(batch.keys) for batch in expected]
    assert all(isinstance(batch, Batch) for batch in batches)
    assert all(torch.equal(one.audio, other.audio) for one, other in zip(batches, expected))
    assert loader.consumed_samples == SAMPLES


@pytest.mark.parametrize("num_workers", [1, 2])
def test_wrapped_into_a_dataset_with_workers(data: Path, num_workers: int) -> None:
    with pytest.raises(
        RuntimeError, match="each of them would deliver all batches.*Iterate over the ShardLoader itself"
    ):
        list(DataLoader(Wrapped(ShardLoader(data, **OPTIONS)), batch_size=None, num_workers=num_workers))


PROCESS = """
import json, sys
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from shardpipe import ShardLoader
from shardpipe.errors import ShardpipeError

folder, data, rank, size = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
options = {"batch_size": 4, "window": 8, "lanes": 2}
auto = ShardLoader(data, rank="auto", **options)  # made before there is anything to take it from
dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=size)


def taken(loader):
    try:
        return [list(batch.keys) for batch in loader for _ in [0] if batch.weights.any()]
    except ShardpipeError as error:
        return str(error)


mesh = init_device_mesh("cpu", (2, 1), mesh_dim_names=("dp", "tp"))
found = {
    "plain": taken(ShardLoader(data, **options)),
    "auto": taken(auto),
    "given": taken(ShardLoader(data, rank=rank, world_size=size, **options)),
    "dp": taken(ShardLoader(data, rank=mesh["dp"], **options)),
    "tp": taken(ShardLoader(data, rank=mesh["tp"], **options)),
    "alone": taken(ShardLoader(data, rank=0, world_size=1, **options)) if rank == 0 else None,
    "length": len(auto),
}
try:
    ShardLoader(data, rank=mesh, **options)
except ShardpipeError as error:
    found["mesh"] = str(error)
with open(f"{folder}/{rank}.json", "w") as file:
    json.dump(found, file)
dist.destroy_process_group()
"""


def test_two_processes(data: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-W", "ignore", "-c", PROCESS, str(tmp_path), str(data)]
    processes = [subprocess.Popen([*command, str(rank), "2"], stderr=subprocess.PIPE) for rank in range(2)]
    for process in processes:
        _, errors = process.communicate(timeout=300)
        assert process.returncode == 0, errors.decode()
    first, second = (json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(2))
    expected = [[list(batch.keys) for batch in ShardLoader(data, rank=r, world_size=2, **OPTIONS)] for r in range(2)]
    for how in ("auto", "given", "dp"):
        assert [first[how], second[how]] == expected, how
    everything = [list(batch.keys) for batch in ShardLoader(data, **OPTIONS)]
    assert first["tp"] == second["tp"] == everything, "ranks that share a model share its batches"
    assert first["alone"] == everything
    assert first["length"] == len(expected[0])
    for found in (first, second):
        assert "torch.distributed has 2 processes, and all of them would be given the same batches" in found["plain"]
        assert 'rank="auto"' in found["plain"]
        assert 'it must be one dimension of the mesh, such as mesh["dp"]' in found["mesh"]


def test_torchrun_without_a_process_group(data: Path, tmp_path: Path) -> None:
    (tmp_path / "script.py").write_text(
        textwrap.dedent(f"""
        from shardpipe import ShardLoader
        from shardpipe.errors import ConfigError
        try:
            list(ShardLoader({str(data)!r}, batch_size=4, rank="auto"))
        except ConfigError as error:
            print(error, flush=True)
        """)
    )
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "1"]
    done = subprocess.run([*command, str(tmp_path / "script.py")], capture_output=True, text=True, timeout=300)
    assert "rank is 'auto', but torchrun has started this process" in done.stdout, done.stderr


def test_alone_auto_is_alone(data: Path) -> None:
    expected = [batch.keys for batch in ShardLoader(data, **OPTIONS)]
    assert [batch.keys for batch in ShardLoader(data, rank="auto", **OPTIONS)] == expected
    copied = pickle.loads(pickle.dumps(ShardLoader(data, rank="auto", **OPTIONS)))
    assert [batch.keys for batch in copied] == expected


def test_passes_for_validation(data: Path) -> None:
    loader = ShardLoader(data, repeat=False, **OPTIONS)
    whole = [list(batch.keys) for batch in loader]
    assert len(loader) == loader.batches_left() == len(whole) == SAMPLES // 4
    for taken, batch in enumerate(loader):
        assert list(batch.keys) == whole[taken]
        if taken == 3:
            break
    assert (loader.consumed_samples, loader.epoch, len(loader)) == (0, 0, len(whole))
    assert [list(batch.keys) for batch in loader] == whole
    interrupted = iter(loader)
    next(interrupted)
    assert [list(batch.keys) for batch in loader] == whole, "nor does a loop that was never left"
    limited = ShardLoader(data, repeat=False, min_seconds=0.12, **OPTIONS)
    counted = []
    for stop in (None, None, 1, None):
        for taken, _ in enumerate(limited, 1):
            assert len(limited) == limited.batches_left() == len(list(ShardLoader(data, min_seconds=0.12, **OPTIONS)))
            if taken == stop:
                break
        counted.append(limited.num_excluded)
    assert counted[0] == counted[1] == counted[3] > counted[2], "each pass counts anew"
    with pytest.raises(ConfigError, match="there is nothing to go on with"):
        loader.load_state_dict(ShardLoader(data, **OPTIONS).state_dict())


def test_a_batch_says_where_it_stands_however_far_something_fetched_ahead(data: Path) -> None:
    options = {**OPTIONS, "sub_epochs": 3, "seed": 4}
    loader = ShardLoader(data, **options)
    ahead = [batch for _ in range(4) for batch in loader]
    for number in (0, 1, 4, len(ahead) - 2):
        resumed = ShardLoader(data, rank=0, world_size=1, **options)
        resumed.load_state_dict(json.loads(json.dumps(ahead[number].state)))
        assert resumed.consumed_samples == ahead[number].consumed_samples
        rest = [batch for _ in range(4) for batch in resumed]
        assert [batch.keys for batch in rest][: len(ahead) - number - 1] == [
            batch.keys for batch in ahead[number + 1 :]
        ]


def batch_of(data: Path) -> Batch:
    batch: Batch = next(iter(ShardLoader(data, **OPTIONS)))
    return batch


def test_a_batch_is_a_mapping(data: Path) -> None:
    batch = batch_of(data)
    assert isinstance(batch, Mapping)
    assert list(batch) == list(batch.keys()) == FIELDS
    assert len(batch) == len(FIELDS)
    assert batch["audio"] is batch.audio
    assert dict(batch)["keys"] == dict(**batch)["keys"] == batch.keys
    assert "audio" in batch
    assert "nothing" not in batch
    assert len(batch.keys()) == len(FIELDS)
    assert batch.keys() & {"audio", "else"} == {"audio"}
    assert batch.get("nothing", 1) == 1
    for made in (type(batch)({name: value for name, value in batch.items()}), Batch(**batch), Batch(batch)):  # noqa: C416
        assert list(made.keys()) == FIELDS
        assert made.keys == batch.keys
        assert made.audio is batch.audio
    with pytest.raises(TypeError, match="a Batch has the fields audio, lengths"):
        Batch({"audio": batch.audio})
    assert batch == batch
    assert batch != copy.copy(batch)
    assert len({batch, batch}) == 1


def test_a_batch_is_cast_as_lightning_does(data: Path) -> None:
    batch = batch_of(data)
    cast = apply_to_collection(batch, torch.Tensor, lambda tensor: tensor.to(torch.bfloat16))
    assert cast.audio.dtype == cast.weights.dtype == torch.bfloat16
    assert batch.audio.dtype == torch.float32
    assert (cast.keys, cast.state, list(cast)) == (batch.keys, batch.state, FIELDS)


@pytest.mark.parametrize(
    "travel",
    [copy.copy, lambda batch: pickle.loads(pickle.dumps(batch)), default_convert],
    ids=["copy", "pickle", "torch"],
)
def test_a_batch_travels(data: Path, travel: Any) -> None:
    batch = batch_of(data)
    there = travel(batch)
    assert isinstance(there, Batch)
    assert (list(there.keys), list(there.keys()), there.state) == (list(batch.keys), FIELDS, batch.state)
    assert torch.equal(there.audio, batch.audio)


def test_a_batch_moves(data: Path) -> None:
    batch = batch_of(data)
    moved = batch.to("meta")
    assert {moved[name].device.type for name in ("audio", "lengths", "weights")} == {"meta"}
    assert (moved.keys, moved.state) == (batch.keys, batch.state)
    assert batch.to("cpu", non_blocking=True).audio.device.type == "cpu"
    assert replace(batch, epoch=7).epoch == 7
    if torch.cuda.is_available():
        assert batch.pin_memory().audio.is_pinned()


def with_place(samples: list[Sample], place: Place) -> dict[str, Any]:
    return {"keys": [sample.key for sample in samples], "place": place}


def with_default(samples: list[Sample], bonus: int = 3) -> int:
    return len(samples) + bonus


def with_optional_place(samples: list[Sample], place: Place | None = None) -> dict[str, Any]:
    assert place is not None
    return with_place(samples, place)


def with_named_place(samples: list[Sample], *, place: Place) -> dict[str, Any]:
    return with_place(samples, place)


def with_options(samples: list[Sample], options: int, place: Place) -> dict[str, Any]:
    return with_place(samples, place)


def with_its_own_word_for_it(samples: list[Sample], where: Place) -> dict[str, Any]:
    return with_place(samples, where)


@wraps(with_place)
def passed_on(*arguments: Any, **named: Any) -> dict[str, Any]:
    return with_place(*arguments, **named)


@wraps(with_place)
def narrowed(samples: list[Sample]) -> int:
    return len(samples)


class Collater:
    def __call__(self, samples: list[Sample], place: Place) -> dict[str, Any]:
        return with_place(samples, place)


@pytest.mark.parametrize(
    ("collate", "workers"),
    [
        *((collate, 0) for collate in (with_optional_place, with_named_place, with_its_own_word_for_it, passed_on)),
        *((collate, 1) for collate in (with_place, Collater(), partial(with_options, options=1))),
    ],
)
def test_collate_may_ask_where_the_batch_stands(data: Path, collate: Any, workers: int) -> None:
    made = list(ShardLoader(data, collate=collate, workers=workers, **OPTIONS))
    for one, batch in zip(made, ShardLoader(data, **OPTIONS), strict=True):
        assert one["keys"] == list(batch.keys)
        place = one["place"]
        assert asdict(place) == {field: batch[field] for field in FIELDS[-5:]}


@pytest.mark.parametrize("collate", [len, list, with_default, narrowed], ids=["builtin", "type", "default", "narrowed"])
def test_collate_functions_that_ask_for_nothing(data: Path, collate: Any) -> None:
    assert list(ShardLoader(data, collate=collate, **OPTIONS))


def changed(audio: Any) -> Any:
    def transform(sample: Sample, rng: np.random.Generator) -> Sample:
        if sample.key == "utt00003":
            sample.audio = audio(sample.audio)
        return sample

    return transform


def test_a_tensor_from_a_transform_is_taken(data: Path) -> None:
    expected = list(ShardLoader(data, **OPTIONS))
    for audio in (
        torch.from_numpy,
        lambda given: torch.from_numpy(given).double().requires_grad_(),
        lambda given: list(given),
    ):
        for batch, other in zip(ShardLoader(data, transform=changed(audio), **OPTIONS), expected, strict=True):
            assert torch.equal(batch.audio, other.audio)


@pytest.mark.parametrize(
    ("audio", "said"),
    [
        (lambda audio: audio[:0], "is empty"),
        (lambda audio: audio * np.nan, "not all numbers"),
        (lambda audio: np.append(audio, np.inf).astype(np.float32), "not all numbers"),
        (
            lambda audio: torch.stack([torch.from_numpy(audio)] * 2),
            r"is float32 \[2, \d+\], but it must be float32 \[T\]",
        ),
        (lambda audio: None, "is object"),
        (lambda audio: "audio", "is <U5"),
    ],
    ids=["empty", "nan", "inf", "stereo", "none", "text"],
)
def test_what_is_no_audio_from_a_transform_is_named(data: Path, audio: Any, said: str) -> None:
    with pytest.raises(ValueError, match=f"sample 'utt00003' is.*{said.removeprefix('is ')}"):
        list(ShardLoader(data, transform=changed(audio), **OPTIONS))


@pytest.mark.parametrize(
    ("audio", "said"),
    [
        (lambda audio: np.full(9, 1e300), "is not all numbers"),
        (lambda audio: torch.from_numpy(audio).to_sparse(), "is no array"),
        (lambda audio: [audio, audio[1:]], "is no array"),
        (lambda audio: torch.from_numpy(audio).to("meta"), "is no array"),
    ],
    ids=["beyond float32", "sparse", "ragged", "meta"],
)
def test_odd_audio_from_a_transform_is_named_too(data: Path, audio: Any, said: str) -> None:
    with pytest.raises(ValueError, match=f"audio of sample 'utt00003' {said}"):
        list(ShardLoader(data, transform=changed(audio), **OPTIONS))


def test_narrow_tensors_are_taken(data: Path) -> None:
    for kind in (torch.bfloat16, torch.float16):
        transform = changed(lambda audio, kind=kind: torch.from_numpy(audio).to(kind))
        assert list(ShardLoader(data, transform=transform, **OPTIONS))


def test_skipped_samples_become_what_a_transform_makes_of_the_others(tmp_path: Path) -> None:
    """No transform sees their silence, but the others may have other rates and channels by then."""
    lines = []
    for number in range(3):
        (tmp_path / f"{number}.wav").write_bytes(make_bytes("wav", 8000, channels=2, seed=number))
        lines.append(json.dumps({"key": f"k{number}", "wav": f"{number}.wav", "txt": ""}) + "\n")
    (tmp_path / "data.list").write_text("".join(lines))
    pack(tmp_path / "data.list", tmp_path / "out")
    row = Index.load(str(tmp_path / "out")).rows(0).slice(1, 1).to_pylist()[0]
    with open(tmp_path / "out/shard-000000.tar", "r+b") as tar:
        tar.seek(row["audio_offset"] + 100)
        tar.write(b"damaged")

    def transform(sample: Sample, rng: np.random.Generator) -> Sample:
        sample.audio, sample.sample_rate = sample.audio[:1, ::2].copy(), 8000
        return sample

    options: dict[str, Any] = {"batch_size": 3, "shuffle": False, "channels": "keep", "on_error": "skip"}
    (batch,) = ShardLoader(tmp_path / "out", transform=transform, **options)
    assert batch.audio.shape == (3, 1, 4000)
    assert (batch.sample_rate, batch.lengths.tolist(), batch.weights.tolist()) == (8000, [4000] * 3, [1, 0, 1])
    assert not batch.audio[1].any()


def test_large_numbers_are_numbers(data: Path) -> None:
    for batch in ShardLoader(data, transform=changed(lambda audio: np.full_like(audio, 3e38)), **OPTIONS):
        assert torch.isfinite(batch.audio).all()
