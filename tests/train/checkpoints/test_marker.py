"""checkpoint.json is as it was written, or the checkpoint is damaged."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shardpipe.errors import StoreError
from shardpipe.train.checkpoints import Checkpoint, Checkpoints, Identity, Keep, Progress, read_checkpoint
from shardpipe.train.checkpoints.marker import Sum, marker_of
from shardpipe.train.checkpoints.reading import looks_whole

COUNT = 1234
FIGURES = {"dev/loss": 1.5, "dev/wer": None}
FILES = (".metadata", "__0_0.distcp")


@pytest.fixture(params=[1, 2])
def folder(tmp_path: Path, request: pytest.FixtureRequest) -> Path:
    """A checkpoint, of either format, whose files are small, and no tensors."""
    path = tmp_path / f"{COUNT:012d}"
    path.mkdir()
    files = {name: b"content of " + name.encode() for name in FILES}
    for name, content in files.items():
        (path / name).write_bytes(content)
    plan = {"window": 8192, "lanes": 1, "shuffle": True, "batch_size": None, "batch_seconds": 60.5, "origin": 0}
    loader = {"format": 1, "algorithm": 1, "seed": 3, "consumed_samples": COUNT, "plan": plan}
    identity = Identity(model="tiny", units=("<blank>", "<unk>", "é", "\u2581"), sample_rate=16000)
    progress = Progress(steps=77, evaluated=False)
    checkpoint = Checkpoint(
        consumed_samples=COUNT,
        progress=progress,
        identity=identity,
        loader=loader,
        files={name: Sum.of([content]) for name, content in files.items()},
        format=request.param,
    )
    (path / "checkpoint.json").write_bytes(marker_of(checkpoint))
    return path


def mark_evaluated(folder: Path) -> None:
    progress = msgspec.structs.replace(read(folder).progress, evaluated=True, sub_epochs=2)
    Checkpoints(str(folder.parent), keep=Keep()).mark_evaluated(COUNT, progress, FIGURES)


def read(folder: Path) -> Checkpoint:
    return read_checkpoint(str(folder))


def change(folder: Path, **fields: Any) -> None:
    """Other fields, and no checksum, as it was before there was one: of format 1."""
    marker = {**json.loads((folder / "checkpoint.json").read_bytes()), "format": 1}
    marker.pop("checksum", None)
    (folder / "checkpoint.json").write_text(json.dumps(marker | fields))


def test_what_is_written_is_read(folder: Path) -> None:
    found = read(folder)
    assert (found.consumed_samples, found.progress) == (COUNT, Progress(steps=77, evaluated=False))
    assert found.identity == Identity(model="tiny", units=("<blank>", "<unk>", "é", "\u2581"), sample_rate=16000)
    assert found.loader["plan"]["batch_seconds"] == 60.5
    assert found.files.keys() == set(FILES)
    assert found.size == sum(len((folder / name).read_bytes()) for name in FILES)
    assert found.valid is None
    assert looks_whole(found)
    mark_evaluated(folder)
    marked = read(folder)
    assert marked.progress == Progress(steps=77, evaluated=True, sub_epochs=None if found.format == 1 else 2)
    assert marked.valid == (None if found.format == 1 else FIGURES)
    assert replace(marked, progress=found.progress, valid=None) == found
    (folder / FILES[0]).write_bytes(b"other content")
    assert not looks_whole(marked)


def test_every_flipped_bit_is_found(folder: Path) -> None:
    file = folder / "checkpoint.json"
    whole = file.read_bytes()
    before = read(folder)
    for place in range(len(whole)):
        for bit in range(8):
            flipped = bytearray(whole)
            flipped[place] ^= 1 << bit
            file.write_bytes(flipped)
            with pytest.raises(StoreError, match=r"is damaged|has format"):
                read(folder)
            with pytest.raises(StoreError):
                mark_evaluated(folder)
    file.write_bytes(whole)
    assert read(folder) == before


def test_a_checkpoint_without_a_checksum_is_read_if_its_counts_agree(folder: Path) -> None:
    before = replace(read(folder), format=1)
    change(folder)
    assert read(folder) == before
    loader = json.loads((folder / "checkpoint.json").read_bytes())["loader"]
    for fields in (
        {"consumed_samples": COUNT + 1},
        {"loader": {**loader, "consumed_samples": COUNT + 1}},
        {"loader": {**loader, "consumed_samples": str(COUNT)}},
        {"loader": {}},
    ):
        write_again = folder / "checkpoint.json"
        kept = write_again.read_bytes()
        (folder / "checkpoint.json").write_text(json.dumps(json.loads(kept) | fields))
        with pytest.raises(StoreError, match="is damaged: .*different counts of consumed samples: .*1234"):
            read(folder)
        write_again.write_bytes(kept)
    other = folder.with_name(f"{COUNT + 1:012d}")
    folder.rename(other)
    with pytest.raises(StoreError, match="is damaged: .*different counts of consumed samples"):
        read(other)
    named = other.with_name("best")
    other.rename(named)
    assert read(named).consumed_samples == COUNT


def test_format_2_has_a_checksum(folder: Path) -> None:
    marker = json.loads((folder / "checkpoint.json").read_bytes()) | {"format": 2}
    del marker["checksum"]
    (folder / "checkpoint.json").write_text(json.dumps(marker))
    with pytest.raises(StoreError, match="is damaged: checkpoint.json has no checksum"):
        read(folder)


@pytest.mark.parametrize("field", ["format", "consumed_samples", "progress", "identity", "loader", "files"])
@pytest.mark.parametrize("value", [None, "x", -1, 2**64, 1.5, [], {}, {"x": 1}, {"size": -1}, True])
def test_a_field_of_another_kind(folder: Path, field: str, value: Any) -> None:
    if (field, value) in (("progress", {}), ("files", {})):
        return  # nothing counted yet, and no file: odd, and no fault
    change(folder, **{field: value})
    with pytest.raises(StoreError, match=r"is damaged|has format"):
        read(folder)


@given(data=st.data())
def test_a_field_that_is_missing_or_anything(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    """Whatever stands there: a checkpoint, or a StoreError."""
    folder = tmp_path_factory.mktemp("checkpoints") / f"{COUNT:012d}"
    folder.mkdir()
    anything = st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
        max_leaves=6,
    )
    names = ["format", "consumed_samples", "progress", "identity", "loader", "files", "checksum"]
    marker = {name: data.draw(anything) for name in data.draw(st.sets(st.sampled_from(names)))}
    (folder / "checkpoint.json").write_text(json.dumps({"format": 1} | marker))
    with pytest.raises(StoreError, match=r"is damaged|has format|is no complete"):
        read(folder)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\0",
        b"[" * 100_000,
        b'{"format":' * 100_000,
        b'{"format": 1, "consumed_samples": NaN}',
        b'"\\ud800"',
        b"1",
    ],
)
def test_what_is_no_marker(folder: Path, content: bytes) -> None:
    (folder / "checkpoint.json").write_bytes(content)
    with pytest.raises(StoreError, match="is damaged: checkpoint.json cannot be read"):
        read(folder)


@pytest.mark.parametrize("size", ["4", 0, -1, True, 2.0, 10**30, [4]])
def test_steps_of_no_size(folder: Path, size: Any) -> None:
    loader = json.loads((folder / "checkpoint.json").read_bytes())["loader"]
    change(folder, loader=loader | {"batches_per_step": size})
    with pytest.raises(StoreError, match="is damaged: .*where batches of a step are counted"):
        read(folder)


@pytest.mark.parametrize(
    "scale", [{"factor": 1e39, "steps": 0}, {"factor": 1e-50, "steps": 0}, {"factor": 2.0, "steps": 2**31}, {}, 3]
)
def test_a_scale_that_cannot_be(folder: Path, scale: Any) -> None:
    change(folder, scale={"factor": 65536.0, "steps": 7})
    found = read(folder).scale
    assert found is not None
    assert (found.factor, found.steps) == (65536.0, 7)
    change(folder, scale=scale)
    with pytest.raises(StoreError, match="is damaged"):
        read(folder)
