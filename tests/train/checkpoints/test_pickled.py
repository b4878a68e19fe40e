"""Checkpoints of format 1 that somebody else has made: nothing in them runs, and nothing in them leads elsewhere."""

from __future__ import annotations

import io
import json
import os
import pickle
import shutil
import zlib
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.distributed.checkpoint import metadata as dcp

from shardpipe.train.cli import main
from shardpipe.train.task import model
from tests.past.recording import FLAGS
from tests.training import one_thread

PAST = Path(__file__).parents[2] / "past" / "0.1.0"


class Runs:
    """Pickled, it makes a folder when it is read."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.mark),)


def meddles(target: str, attribute: str, value: Any) -> bytes:
    """A pickle that sets an attribute of a class or a function which DCP's metadata are made of."""
    module, _, name = target.rpartition(".")
    state = pickle.dumps((None, {attribute: value}), protocol=2)[2:-1]
    return b"\x80\x02c" + f"{module}\n{name}\n".encode() + state + b"b."


@pytest.fixture
def checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setitem(model.SIZES, "tiny", model.Size(width=8, layers=1, heads=2, hidden=8, kernel=3))
    return Path(shutil.copytree(PAST / "checkpoint", tmp_path / "run" / "checkpoints" / f"{12:012d}"))


def plant(checkpoint: Path, files: dict[str, bytes]) -> None:
    """Puts files into a checkpoint, which says that they are its own."""
    marker = json.loads((checkpoint / "checkpoint.json").read_bytes())
    for name, content in files.items():
        (checkpoint / name).write_bytes(content)
        marker["files"][name] = {"size": len(content), "crc32": zlib.crc32(content)}
    (checkpoint / "checkpoint.json").write_text(json.dumps(marker))


def planted_metadata(checkpoint: Path, change: Callable[[dcp.Metadata], None]) -> None:
    metadata = pickle.loads((checkpoint / ".metadata").read_bytes())
    change(metadata)
    plant(checkpoint, {".metadata": pickle.dumps(metadata)})


def planted_value(checkpoint: Path, value: Any, *, for_tensors: bool) -> None:
    """Puts a value in the place of all tensors of the checkpoint, or of all else in it."""
    stream = io.BytesIO()
    torch.save(value, stream)
    tensors = (checkpoint / "__0_0.distcp").read_bytes()

    def change(metadata: dcp.Metadata) -> None:
        for index, info in metadata.storage_data.items():
            if isinstance(metadata.state_dict_metadata[index.fqn], dcp.TensorStorageMetadata) == for_tensors:
                info.offset, info.length = len(tensors), stream.tell()

    planted_metadata(checkpoint, change)
    plant(checkpoint, {"__0_0.distcp": tensors + stream.getvalue()})


def resumed(checkpoint: Path, capsys: pytest.CaptureFixture[str], *more: str) -> tuple[int, str]:
    """The exit code of a run that begins with it, and what it said."""
    with one_thread():
        code = main(["--data", str(PAST / "data"), "--out", str(checkpoint.parents[1]), *FLAGS, *more])
    return code, capsys.readouterr().err


@pytest.mark.parametrize("where", ["resume", "init-from"])
@pytest.mark.parametrize("place", ["metadata", "tensors"])
def test_nothing_in_a_checkpoint_runs(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], place: str, where: str
) -> None:
    mark = tmp_path / "mark"
    if place == "metadata":
        plant(checkpoint, {".metadata": pickle.dumps(Runs(mark))})
    else:
        planted_value(checkpoint, Runs(mark), for_tensors=True)
    more = [] if where == "resume" else ["--out", str(tmp_path / "other"), "--init-from", str(checkpoint)]
    code, said = resumed(checkpoint, capsys, *more)
    assert not mark.exists()
    assert code == 1
    assert f"{checkpoint}: is damaged" in said
    assert "Choose another checkpoint" in said


def test_what_is_no_tensor_is_not_even_read(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    planted_value(checkpoint, Runs(tmp_path / "mark"), for_tensors=False)
    code, said = resumed(checkpoint, capsys, "--epochs", "1")
    assert code == 0, said
    assert "going on at sample 12" in said
    assert not (tmp_path / "mark").exists()


@pytest.mark.parametrize(
    ("target", "attribute", "value"),
    [
        ("torch.distributed.checkpoint.metadata.Metadata", "planted", True),
        ("torch.distributed.checkpoint.metadata.MetadataIndex", "__hash__", None),
        ("torch.serialization._get_layout", "__defaults__", (1,)),
    ],
)
def test_nothing_in_a_checkpoint_changes_a_class(
    checkpoint: Path, capsys: pytest.CaptureFixture[str], target: str, attribute: str, value: Any
) -> None:
    module, _, name = target.rpartition(".")
    changed = getattr(import_module(module), name)
    before = getattr(changed, attribute, "absent")
    plant(checkpoint, {".metadata": meddles(target, attribute, value)})
    code, said = resumed(checkpoint, capsys)
    assert getattr(changed, attribute, "absent") == before
    assert code == 1
    assert f"{checkpoint}: is damaged" in said


@pytest.mark.parametrize("setting", ["decoupled_weight_decay", "lr", "fused"])
def test_settings_that_another_torch_has_not_are_no_matter(
    checkpoint: Path, capsys: pytest.CaptureFixture[str], setting: str
) -> None:
    """torch 2.6 knows no decoupled_weight_decay: a run that it began goes on with a newer one."""

    def change(metadata: dcp.Metadata) -> None:
        for group in range(2):
            del metadata.state_dict_metadata[f"optimizer.param_groups.{group}.{setting}"]

    planted_metadata(checkpoint, change)
    code, said = resumed(checkpoint, capsys, "--epochs", "1")
    assert code == 0, said
    assert "going on at sample 12" in said


@pytest.mark.parametrize("name", ["../../secret", "/etc/hostname", "sub/../../../secret", "checkpoint.json", "..", ""])
def test_names_in_a_checkpoint_do_not_leave_it(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    shutil.copy(checkpoint / "__0_0.distcp", tmp_path / "run" / "secret")

    def change(metadata: dcp.Metadata) -> None:
        for info in metadata.storage_data.values():
            info.relative_path = name

    planted_metadata(checkpoint, change)
    code, said = resumed(checkpoint, capsys)
    assert code == 1
    assert f"{checkpoint}: is damaged" in said
    assert repr(name) in said

    shutil.copytree(PAST / "checkpoint", checkpoint, dirs_exist_ok=True)
    marker = json.loads((checkpoint / "checkpoint.json").read_bytes())
    marker["files"][name] = marker["files"].pop("__0_0.distcp")
    (checkpoint / "checkpoint.json").write_text(json.dumps(marker))
    code, said = resumed(checkpoint, capsys)
    assert code == 1
    assert f"{checkpoint}: it is damaged" in said
    assert repr(name) in said


def without_pieces(metadata: dcp.Metadata) -> None:
    for found in metadata.state_dict_metadata.values():
        if isinstance(found, dcp.TensorStorageMetadata):
            found.chunks = []


def of_no_size(metadata: dcp.Metadata) -> None:
    for found in metadata.state_dict_metadata.values():
        if isinstance(found, dcp.TensorStorageMetadata):
            found.size = None  # type: ignore[assignment]


def of_no_kind(metadata: dcp.Metadata) -> None:
    metadata.state_dict_metadata = ["x"]  # type: ignore[assignment]


@pytest.mark.parametrize("change", [without_pieces, of_no_size, of_no_kind])
def test_tensors_that_are_not_all_there(
    checkpoint: Path, capsys: pytest.CaptureFixture[str], change: Callable[[dcp.Metadata], None]
) -> None:
    planted_metadata(checkpoint, change)
    for code, said in (resumed(checkpoint, capsys), (main(["export", str(checkpoint)]), capsys.readouterr().err)):
        assert code == 1
        assert f"{checkpoint}: is damaged" in said
