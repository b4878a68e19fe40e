"""Files and states that somebody else has made, or that came to harm: always one of our errors, and never another.

A valid one is taken, and in one place of it stands something else. What is made of it is an error of ours, or works.
"""

from __future__ import annotations

import copy
import io
import json
import shutil
import tarfile
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from shardpipe import ShardLoader
from shardpipe.dataset import MANIFEST, Index, Row, ShardInfo, rows_batch, stage_index, verify
from shardpipe.dataset.parts import rows_checksum
from shardpipe.errors import ConfigError, CorruptIndex, ResumeMismatch, ShardError, ShardpipeError
from shardpipe.loading import BatchSequence, given_at, plan_cost, visits
from shardpipe.order import Batching
from shardpipe.pack import PackOptions, index_tars, pack
from tests.places import tree
from tests.speech import make_wav, pack_speech, write_list

DEEP = 100_000
RAW = {
    "deep list": "[" * DEEP + "]" * DEEP,
    "deep object": '{"a":' * DEEP + "1" + "}" * DEEP,
    "NaN": "NaN",
    "infinite": "1e999",
    "half a pair": '"\\ud800"',
    "a long number": "9" * 5000,
}
"""JSON text, or what takes itself for such."""
VALUES: list[Any] = [
    *(None, True, False, 0, -1, 1, 2**31, 2**62, 2**63, 2**64, -(2**63), 0.0, -0.5, 1.5, 1e308, "", "x", "0" * 32),
    *("\0", "../../x", "/etc/hostname", "a" * 10_000, [], [[]], {}, {"x": 1}, [1, "x"]),
]
FUZZ = settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The paths of everything in a document, but for the document itself."""
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, one in inner:
        yield (*path, key)
        yield from places(one, (*path, key))


def changed(document: Any, path: tuple[Any, ...], change: Any) -> str:
    """The document as text, with another value in one place, or without what is there."""
    document = copy.deepcopy(document)
    holder = document
    for key in path[:-1]:
        holder = holder[key]
    if change == "missing":
        del holder[path[-1]]
    elif change in RAW:
        holder[path[-1]] = "the place of it"
        return json.dumps(document).replace('"the place of it"', RAW[change])
    else:
        holder[path[-1]] = VALUES[int(change)]
    return json.dumps(document)


CHANGES = st.sampled_from(["missing", *RAW, *map(str, range(len(VALUES)))])


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return pack_speech(tmp_path_factory.mktemp("hostile"), 20, shard_samples=6, seconds=(0.05, 0.2))


def use(data: Path) -> None:
    """All that is done with a dataset."""
    attempts: list[Callable[[], object]] = [
        lambda: list(ShardLoader(data, batch_size=4, threads=1)),
        lambda: list(ShardLoader(data, batch_seconds=1.0, max_seconds=0.9, window=8, lanes=2, threads=1)),
        lambda: list(ShardLoader(data, batch_size=3, on_error="skip", threads=1)),
        lambda: [*ShardLoader(data, batch_size=3).texts(), ShardLoader(data, batch_size=3).sample_rate],
        lambda: verify(data),
        lambda: plan_cost(BatchSequence(Index.load(str(data)), Batching(batch_seconds=2.0))),
        lambda: given_at(BatchSequence(Index.load(str(data)), Batching(batch_size=2)), 3),
        lambda: visits(BatchSequence(Index.load(str(data)), Batching(batch_size=2)), "utt00003", epochs=1),
    ]
    for attempt in attempts:
        with suppress(ShardpipeError):
            attempt()


@FUZZ
@given(draw=st.data())
def test_a_manifest(data: Path, tmp_path_factory: pytest.TempPathFactory, draw: st.DataObject) -> None:
    folder = Path(shutil.copytree(data, tmp_path_factory.mktemp("set") / "data"))
    document = json.loads((folder / MANIFEST).read_bytes())
    path = draw.draw(st.sampled_from(list(places(document))))
    (folder / MANIFEST).write_text(changed(document, path, draw.draw(CHANGES)))
    use(folder)


@pytest.mark.parametrize(
    "text", [*RAW.values(), "", "{", "[]", "null", '"x"', "\ufeff{}", '{"shardpipe": {"format": 1}}']
)
def test_what_is_no_manifest(data: Path, tmp_path: Path, text: str) -> None:
    (tmp_path / MANIFEST).write_text(text)
    with pytest.raises(CorruptIndex, match="not a manifest"):
        Index.load(str(tmp_path))


NUMBERS = [0, 1, -1, 2**15, 2**31 - 1, 2**31, 2**32 - 1, 2**47, 2**62, 2**63 - 1, -(2**63)]
STRINGS = ["", "x", "\0", "a/b", "../x", "{", "[]", "1", '{"a": NaN}', RAW["deep list"], RAW["deep object"], "ü" * 9999]


@FUZZ
@given(draw=st.data())
def test_rows(data: Path, tmp_path_factory: pytest.TempPathFactory, draw: st.DataObject) -> None:
    """With a manifest that fits: whoever makes rows can make it, too."""
    folder = Path(shutil.copytree(data, tmp_path_factory.mktemp("set") / "data"))
    index = Index.load(str(data))
    shard = draw.draw(st.integers(0, len(index.shards) - 1))
    rows = [Row(**row) for row in index.rows(shard).to_pylist()]
    at = draw.draw(st.integers(0, len(rows) - 1))
    name = draw.draw(st.sampled_from(Row._fields))
    kind = rows_batch([]).schema.field(name).type
    value = draw.draw(st.sampled_from(STRINGS if str(kind) == "string" else NUMBERS))
    try:
        batch = rows_batch([*rows[:at], rows[at]._replace(**{name: value}), *rows[at + 1 :]])
    except (OverflowError, ValueError):
        return  # the column has no room for it
    shards = [(info, index.rows(number)) for number, info in enumerate(index.shards)]
    info = index.shards[shard]
    frames = sum(row["frames"] for row in batch.to_pylist()) % 2**63
    shards[shard] = (replace(info, frames=frames, checksum=rows_checksum(batch)), batch)
    stage_index(folder, shards)
    use(folder)


@pytest.mark.parametrize("column", ["key", "codec", "text", "extras"])
def test_rows_that_are_not_utf_8(data: Path, tmp_path: Path, column: str) -> None:
    folder = Path(shutil.copytree(data, tmp_path / "data"))
    part = folder / "index" / "part-00000.parquet"
    import pyarrow as pa
    import pyarrow.parquet as pq

    table = pq.read_table(part)
    place = table.schema.get_field_index(column)
    broken = pa.array([b"\xff\xfe"] * table.num_rows, pa.binary()).view(pa.string())
    table = table.set_column(place, table.schema.field(column), broken)
    pq.write_table(table, part, row_group_size=6, store_schema=False)
    with pytest.raises(CorruptIndex, match="row group 0 cannot be read"):
        Index.load(str(folder)).rows(0)
    use(folder)


@pytest.mark.parametrize("extras", ["{", "[]", "3", '"x"', RAW["deep list"], RAW["deep object"]])
def test_further_fields_that_are_none(data: Path, tmp_path: Path, extras: str) -> None:
    folder = Path(shutil.copytree(data, tmp_path / "data"))
    index = Index.load(str(data))
    shards = []
    for number, info in enumerate(index.shards):
        batch = rows_batch([Row(**row)._replace(extras=extras) for row in index.rows(number).to_pylist()])
        shards.append((ShardInfo.of(batch, name=info.name, size=info.size, md5=info.md5), batch))
    stage_index(folder, shards)
    with pytest.raises(CorruptIndex, match=r"sample 'utt\d+': its further fields are no JSON object"):
        list(ShardLoader(folder, batch_size=4))
    with pytest.raises(CorruptIndex, match="its further fields are no JSON object"):
        list(ShardLoader(folder, batch_size=4, transform=lambda sample, rng: sample))


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize("frames", [2**31, 2**40])
def test_frames_that_no_memory_holds(tmp_path: Path, frames: int, workers: int) -> None:
    """As many as a payload could hold were it silence, in a shard of many zeros that take no room."""
    size = frames // 8192 + 2048
    with open(tmp_path / "a.tar", "wb") as file:
        file.truncate(size)
    row = Row("a", 0, 0, size, 512, size - 2048, 0, "flac", frames, 16000, 1, "", None)
    other = row._replace(key="b", frames=1)
    batch = rows_batch([row, other])
    stage_index(tmp_path, [(ShardInfo.of(batch, name="a.tar", size=size, md5="0" * 32), batch)])
    if frames == 2**31:
        with pytest.raises(ConfigError, match=r"the sample 'a' alone lasts 134217.73 s"):
            list(ShardLoader(tmp_path, batch_seconds=3600))
    else:
        with pytest.raises(ShardpipeError, match=f"no memory for a batch of 2 samples, padded to {frames} frames"):
            list(ShardLoader(tmp_path, batch_size=2, workers=workers))


@pytest.mark.parametrize("content", [*RAW.values(), "", "{", "[]", "null"])
def test_further_fields_in_a_tar(tmp_path: Path, content: str) -> None:
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        for name, payload in (("k.json", content.encode()), ("k.wav", make_wav(800))):
            member = tarfile.TarInfo(name)
            member.size = len(payload)
            tar.addfile(member, io.BytesIO(payload))
    with pytest.raises(ShardError, match=r"'k.json' is not a JSON object"):
        index_tars(str(tmp_path / "a.tar"), tmp_path / "index")


@pytest.fixture(scope="module")
def state(data: Path) -> dict[str, Any]:
    loader = ShardLoader(data, batch_seconds=1.0, min_seconds=0.01, window=8, lanes=2, resume_samples=7)
    return loader.state_dict()


@FUZZ
@given(draw=st.data())
def test_a_state(data: Path, state: dict[str, Any], draw: st.DataObject) -> None:
    path = draw.draw(st.sampled_from(list(places(state))))
    loader = ShardLoader(data, batch_seconds=1.0, min_seconds=0.01, window=8, lanes=2)
    change = draw.draw(CHANGES)
    hostile = copy.deepcopy(state)
    holder = hostile if len(path) == 1 else hostile["plan"]
    if change == "missing":
        del holder[path[-1]]
    elif change in RAW:
        holder[path[-1]] = _deep() if change.startswith("deep") else float("nan")
    else:
        holder[path[-1]] = VALUES[int(change)]
    before = loader.state_dict()
    try:
        loader.load_state_dict(hostile)
    except (ConfigError, ResumeMismatch) as error:
        said = str(error)
    else:
        next(iter(loader), None)
        return
    assert len(said) < 5000
    assert loader.state_dict() == before, "what was refused has changed nothing"


@pytest.mark.parametrize("state", [None, [], "x", 3, {}, {"format": 1}, [[]], {"plan": {}}, {"format": True}])
def test_what_is_no_state(data: Path, state: Any) -> None:
    loader = ShardLoader(data, batch_size=4)
    with pytest.raises((ConfigError, ResumeMismatch)):
        loader.load_state_dict(state)


def _deep() -> list[Any]:
    value: list[Any] = []
    for _ in range(DEEP):
        value = [value]
    return value


@FUZZ
@given(draw=st.data())
def test_what_packing_left(tmp_path_factory: pytest.TempPathFactory, draw: st.DataObject) -> None:
    """index/job.json of a dataset that is packed over, job.json and publishing of a staging folder."""
    folder = tmp_path_factory.mktemp("pack")
    data_list = write_list(folder / "speech", 3)
    (folder / "victim").write_text("precious")
    out = folder / "out"
    pack(data_list, out, options=PackOptions(shard_samples=2))
    names = ["shard-000000.tar", "index/part-00000.parquet", "shards.list", MANIFEST]
    documents = {
        "index/job.json": json.loads((out / "index/job.json").read_bytes()),
        ".packing/job.json": {"digest": "0" * 64},
        ".packing/publishing": {"names": names, "stale": ["shard-000001.tar"]},
    }
    name = draw.draw(st.sampled_from(list(documents)))
    path = draw.draw(st.sampled_from(list(places(documents[name]))))
    change = draw.draw(st.one_of(CHANGES, st.just(str(VALUES.index("../../x")))))
    text = changed(documents[name], path, change).replace("../../x", "../victim")
    (out / name).parent.mkdir(exist_ok=True)
    (out / name).write_text(text)
    if name == ".packing/publishing":
        shutil.copy(out / MANIFEST, out / ".packing")
    with suppress(ShardpipeError):
        pack(data_list, out, options=PackOptions(shard_samples=2, format="flac", overwrite=True))
    assert (folder / "victim").read_text() == "precious"


@pytest.mark.parametrize("value", [*RAW.values(), "[" * 70 + "]" * 70])
@pytest.mark.parametrize("field", ["key", "wav", "txt", "start", "speaker"])
def test_a_line_of_a_list(tmp_path: Path, field: str, value: str) -> None:
    data_list = write_list(tmp_path, 3)
    lines = data_list.read_text().splitlines()
    fields = {**json.loads(lines[1]), "start": 0.0, field: "the place of it"}
    lines[1] = json.dumps(fields).replace('"the place of it"', value)
    data_list.write_text("\n".join(lines))
    report = pack(data_list, tmp_path / "out", options=PackOptions(on_error="skip", jobs=2))
    assert (report.samples, report.rejected) == (2, 1)
    assert len(tree(tmp_path / "out")["rejected.jsonl"].splitlines()) == 1
