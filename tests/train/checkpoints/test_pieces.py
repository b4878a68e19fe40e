"""Checkpoints of format 2, whoever made them: what is in them is loaded whole, or they are damaged; nothing runs."""

from __future__ import annotations

import json
import math
import os
import struct
from collections.abc import Callable
from functools import partial
from itertools import pairwise, product
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file
from safetensors.torch import save as to_safetensors
from torch.distributed.checkpoint.metadata import ChunkStorageMetadata, TensorProperties, TensorStorageMetadata

from shardpipe.errors import ResumeMismatch, StoreError
from shardpipe.train.checkpoints import pieces as pieces_module
from shardpipe.train.checkpoints import read_checkpoint, read_weights, restore, tensors
from tests.train.checkpoints.saved import ALONE, hold, index_of, model_and_optimizer, plant, save, tensors_in

WEIGHT = "model.0.weight"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    save(str(tmp_path), 4)
    return tmp_path / f"{4:012d}"


def test_what_is_saved_is_restored(folder: Path) -> None:
    saved = hold(*model_and_optimizer(4))
    model, optimizer = model_and_optimizer(5)
    assert not torch.equal(hold(model, optimizer)[WEIGHT], saved[WEIGHT])
    restore(read_checkpoint(str(folder)), model, optimizer, ALONE)
    found = hold(model, optimizer)
    assert found.keys() == saved.keys()
    assert len(found) == 5 * 4, "of each parameter itself, two moments and a step"
    for name in saved:
        assert torch.equal(found[name], saved[name]), name
    assert optimizer.param_groups[0]["lr"] == 1e-3


def test_other_tools_read_the_tensors(folder: Path) -> None:
    assert sorted(path.name for path in folder.iterdir()) == ["checkpoint.json", "rank0-0.safetensors", "tensors.json"]
    found = load_file(folder / "rank0-0.safetensors")
    assert found.keys() == index_of(folder).keys()
    assert torch.equal(found[WEIGHT], model_and_optimizer(4)[0].state_dict()["0.weight"])


def test_files_are_of_bounded_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pieces_module, "_FILE_BYTES", 40)
    save(str(tmp_path), 4)
    folder = tmp_path / f"{4:012d}"
    files = sorted(folder.glob("rank0-*.safetensors"))
    assert len(files) > 5
    for file in files:
        held = load_file(file)
        assert len(held) == 1 or sum(tensor.nbytes for tensor in held.values()) <= 40
    assert torch.equal(tensors_in(folder)["0.weight"], model_and_optimizer(4)[0].state_dict()["0.weight"])


def replanted(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    index = index_of(folder)
    change(index)
    plant(folder, {"tensors.json": json.dumps(index).encode()})


def entry(index: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = index[WEIGHT]
    return found


def piece(at: list[int], shape: list[int], file: str = "rank0-0.safetensors") -> dict[str, Any]:
    return {"file": file, "at": at, "shape": shape}


@pytest.mark.parametrize(
    ("change", "found"),
    [
        (lambda i: entry(i).update(pieces=[]), "pieces of .model.0.weight. do not make it up"),
        (lambda i: entry(i).update(pieces=[piece([0, 0], [4, 3])]), "pieces of .model.0.weight. do not make it up"),
        (lambda i: entry(i).update(pieces=[piece([0, 0], [5, 3])] * 2), "two pieces of .model.0.weight. in one file"),
        (lambda i: entry(i).update(pieces=[piece([0, 1], [5, 3])]), "pieces of .model.0.weight. do not make it up"),
        (lambda i: entry(i).update(pieces=[piece([0], [15])]), "pieces of .model.0.weight. do not make it up"),
        (
            lambda i: entry(i).update(pieces=[piece([0, 0], [5, 3], "/etc/hostname")]),
            "'/etc/hostname', which is no file",
        ),
        (lambda i: entry(i).update(pieces=[piece([0, 0], [5, 3], "../x")]), "'../x', which is no file of it"),
        (lambda i: entry(i).update(pieces=[piece([0, 0], [5, 3], "tensors.json")]), "tensors.json is no safetensors"),
        (lambda i: entry(i).update(pieces=[piece([-1, 0], [5, 3])]), "tensors.json cannot be read"),
        (lambda i: entry(i).update(dtype="object"), "tensors.json cannot be read"),
        (lambda i: entry(i).update(more=1), "tensors.json cannot be read"),
        (lambda i: entry(i).update(dtype="int32"), r"is torch.float32 \[5, 3\] in rank0-0.safetensors, where"),
        (lambda i: i.update({"model.x": i.pop(WEIGHT)}), "is not in rank0-0.safetensors"),
        (
            lambda i: i.update(
                {"model.other": {"dtype": "float32", "shape": [2**40], "pieces": [piece([0], [2**40])]}}
            ),
            "bytes are said to be in files of",
        ),
    ],
)
def test_planted_pieces(folder: Path, change: Callable[[dict[str, Any]], object], found: str) -> None:
    replanted(folder, change)
    with pytest.raises(StoreError, match=f"is damaged: .*{found}"):
        tensors_in(folder)


@pytest.mark.parametrize("content", [b"", b"[]", b"{", b"[" * 100_000, b'{"x":' * 100_000, b'{"model.x": 3}', b"\xff"])
def test_what_is_no_index(folder: Path, content: bytes) -> None:
    plant(folder, {"tensors.json": content})
    with pytest.raises(StoreError, match="is damaged: tensors.json cannot be read"):
        tensors_in(folder)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\x80\x02cposix\nsystem\n",
        struct.pack("<Q", 2**62) + b"{}",
        struct.pack("<Q", 2) + b"{}",
        struct.pack("<Q", 70) + b'{"model.0.weight":{"dtype":"F32","shape":[5,3],"data_offsets":[0,60]}}',
        to_safetensors({WEIGHT: torch.zeros(3, 5)}),
        to_safetensors({WEIGHT: torch.zeros(5, 3).double()}),
    ],
)
def test_what_holds_no_such_tensor(folder: Path, content: bytes) -> None:
    plant(folder, {"rank0-0.safetensors": content})
    with pytest.raises(StoreError, match=r"is damaged: .*rank0-0.safetensors|bytes are said to be in files of"):
        tensors_in(folder)


def test_every_flipped_byte_is_found(folder: Path) -> None:
    for file in ("tensors.json", "rank0-0.safetensors"):
        whole = (folder / file).read_bytes()
        for place in range(0, len(whole), 97):
            (folder / file).write_bytes(whole[:place] + bytes([whole[place] ^ 4]) + whole[place + 1 :])
            with pytest.raises(StoreError, match=f"is damaged: {file} has .*, not the .* that were written"):
                read_checkpoint(str(folder))
        for other in (whole[:-1], whole + b"\0", b""):
            (folder / file).write_bytes(other)
            with pytest.raises(StoreError, match=f"is damaged: {file} has"):
                read_checkpoint(str(folder))
        (folder / file).write_bytes(whole)
    read_checkpoint(str(folder))


def test_a_file_that_changes_after_it_was_checked_is_checked_again(folder: Path) -> None:
    found = read_checkpoint(str(folder))
    file = folder / "rank0-0.safetensors"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    with pytest.raises(StoreError, match="is damaged: rank0-0.safetensors has"):
        read_weights(found)


@pytest.mark.parametrize("name", ["tensors.json", "rank0-0.safetensors", "checkpoint.json"])
def test_what_is_no_file_is_not_waited_for(folder: Path, name: str) -> None:
    (folder / name).unlink()
    os.mkfifo(folder / name)
    with pytest.raises(StoreError, match=f"is damaged: {name} cannot be read"):
        read_checkpoint(str(folder))
    (folder / name).unlink()
    (folder / name).mkdir()
    with pytest.raises(StoreError, match=f"is damaged: {name} cannot be read"):
        read_checkpoint(str(folder))


def test_a_checkpoint_of_another_model_says_what_differs(folder: Path) -> None:
    model = torch.nn.Sequential(torch.nn.Linear(4, 5), torch.nn.LayerNorm(5), torch.nn.Linear(5, 1))
    with pytest.raises(ResumeMismatch) as caught:
        restore(read_checkpoint(str(folder)), model, torch.optim.AdamW(model.parameters()), ALONE)
    said = str(caught.value)
    assert "model.0.weight was [5, 3] when saved and is [5, 4] now" in said
    assert "model.2.bias was None when saved and is [1] now" in said
    assert "; and so on, " in said
    assert str(folder) in said
    assert "a new --out" in said
    before = hold(*model_and_optimizer(4))[WEIGHT]
    assert torch.equal(tensors_in(folder)["0.weight"], before)


def sizes(total: int) -> st.SearchStrategy[list[int]]:
    """Lengths that add up to a total."""
    cuts = st.sets(st.integers(1, total - 1)) if total > 1 else st.just(set[int]())
    return cuts.map(lambda ends: [b - a for a, b in pairwise([0, *sorted(ends), total])])


@given(data=st.data(), shape=st.lists(st.integers(1, 4), max_size=3))
def test_pieces_fill_a_tensor(data: st.DataObject, shape: list[int]) -> None:
    cut = [data.draw(sizes(n)) for n in shape]
    places = [[sum(lengths[:i]) for i in range(len(lengths))] for lengths in cut]
    boxes = [
        ChunkStorageMetadata(torch.Size(at), torch.Size(length)) for at, length in zip(product(*places), product(*cut))
    ]
    boxes = data.draw(st.permutations(boxes))
    bytes_of = partial(tensors._bytes_of, "model.x")
    properties = TensorProperties(dtype=torch.float32)
    whole = TensorStorageMetadata(properties, torch.Size(shape), boxes)
    assert bytes_of(whole) == 4 * math.prod(shape)
    lost = data.draw(st.sampled_from(boxes))
    for other in ([box for box in boxes if box is not lost], [*boxes, lost]):
        with pytest.raises(ValueError, match="do not make it up"):
            bytes_of(TensorStorageMetadata(properties, torch.Size(shape), other))
    if len(boxes) > 1:
        other_boxes = [box for box in boxes if box is not lost]
        moved = next((box for box in other_boxes if box.sizes == lost.sizes), None)
        if moved is not None:
            with pytest.raises(ValueError, match="do not make it up"):
                bytes_of(TensorStorageMetadata(properties, torch.Size(shape), [*other_boxes, moved]))


def test_an_empty_tensor_needs_no_piece() -> None:
    properties = TensorProperties(dtype=torch.float32)
    empty = ChunkStorageMetadata(torch.Size([1, 0]), torch.Size([1, 0]))
    assert tensors._bytes_of("x", TensorStorageMetadata(properties, torch.Size([2, 0]), [empty])) == 0
