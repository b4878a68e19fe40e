"""checkpoint.json is as it was written, or the checkpoint is damaged."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shardpipe.errors import StoreError
from shardpipe.train.checkpoints import Checkpoint, Identity, Progress, read_checkpoint
from shardpipe.train.checkpoints.marker import looks_whole, mark_evaluated, write_marker

COUNT = 1234


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A checkpoint whose files are small, and no tensors."""
    path = tmp_path / f"{COUNT:012d}"
    path.mkdir()
    for name in (".metadata", "__0_0.distcp"):
        (path / name).write_bytes(b"content of " + name.encode())
    plan = {"window": 8192, "lanes": 1, "shuffle": True, "batch_size": None, "batch_seconds": 60.5, "origin": 0}
    loader = {"format": 1, "algorithm": 1, "seed": 3, "consumed_samples": COUNT, "plan": plan}
    identity = Identity(model="tiny", units=("<blank>", "<unk>", "é", "\u2581"), sample_rate=16000)
    progress = Progress(steps=77, evaluated=False)
    write_marker(Checkpoint(path=path, consumed_samples=COUNT, progress=progress, identity=identity, loader=loader))
    return path


def change(folder: Path, **fields: Any) -> None:
    """Other fields, and no checksum, as it was before there was one."""
    marker = json.loads((folder / "checkpoint.json").read_bytes())
    marker.pop("checksum", None)
    (folder / "checkpoint.json").write_text(json.dumps(marker | fields))


def test_what_is_written_is_read(folder: Path) -> None:
    found = read_checkpoint(folder)
    assert (found.consumed_samples, found.progress) == (COUNT, Progress(steps=77, evaluated=False))
    assert found.identity == Identity(model="tiny", units=("<blank>", "<unk>", "é", "\u2581"), sample_rate=16000)
    assert found.loader["plan"]["batch_seconds"] == 60.5
    assert found.files == {".metadata", "__0_0.distcp"}
    mark_evaluated(folder)
    assert read_checkpoint(folder).progress.evaluated
    assert looks_whole(folder)


def test_every_flipped_bit_is_found(folder: Path) -> None:
    file = folder / "checkpoint.json"
    whole = file.read_bytes()
    before = read_checkpoint(folder)
    for place in range(len(whole)):
        for bit in range(8):
            flipped = bytearray(whole)
            flipped[place] ^= 1 << bit
            file.write_bytes(flipped)
            with pytest.raises(StoreError, match=r"is damaged|has format"):
                read_checkpoint(folder)
            with pytest.raises(StoreError):
                mark_evaluated(folder)
    file.write_bytes(whole)
    assert read_checkpoint(folder) == before


def test_a_checkpoint_without_a_checksum_is_read_if_its_counts_agree(folder: Path) -> None:
    before = read_checkpoint(folder)
    change(folder)
    assert read_checkpoint(folder) == before
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
            read_checkpoint(folder)
        write_again.write_bytes(kept)
    other = folder.with_name(f"{COUNT + 1:012d}")
    folder.rename(other)
    with pytest.raises(StoreError, match="is damaged: .*different counts of consumed samples"):
        read_checkpoint(other)
    named = other.with_name("best")
    other.rename(named)
    assert read_checkpoint(named).consumed_samples == COUNT


@pytest.mark.parametrize("field", ["format", "consumed_samples", "progress", "identity", "loader", "files"])
@pytest.mark.parametrize("value", [None, "x", -1, 2**64, 1.5, [], {}, {"x": 1}, {"size": -1}, True])
def test_a_field_of_another_kind(folder: Path, field: str, value: Any) -> None:
    if (field, value) in (("progress", {}), ("files", {})):
        return  # nothing counted yet, and no file: odd, and no fault
    change(folder, **{field: value})
    with pytest.raises(StoreError, match=r"is damaged|has format"):
        read_checkpoint(folder)


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
        read_checkpoint(folder)


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
        read_checkpoint(folder)


@pytest.mark.parametrize("size", ["4", 0, -1, True, 2.0, 10**30, [4]])
def test_steps_of_no_size(folder: Path, size: Any) -> None:
    loader = json.loads((folder / "checkpoint.json").read_bytes())["loader"]
    change(folder, loader=loader | {"batches_per_step": size})
    with pytest.raises(StoreError, match="is damaged: .*where batches of a step are counted"):
        read_checkpoint(folder)


@pytest.mark.parametrize(
    "scale", [{"factor": 1e39, "steps": 0}, {"factor": 1e-50, "steps": 0}, {"factor": 2.0, "steps": 2**31}, {}, 3]
)
def test_a_scale_that_cannot_be(folder: Path, scale: Any) -> None:
    change(folder, scale={"factor": 65536.0, "steps": 7})
    found = read_checkpoint(folder).scale
    assert found is not None
    assert (found.factor, found.steps) == (65536.0, 7)
    change(folder, scale=scale)
    with pytest.raises(StoreError, match="is damaged"):
        read_checkpoint(folder)
