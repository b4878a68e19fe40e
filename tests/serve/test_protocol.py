"""What docs/service.md specifies, by a client that knows nothing but that page."""

from __future__ import annotations

import base64
import hashlib
import http.client
import json
import re
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from shardpipe import ShardLoader
from shardpipe.loading.wire import About, BatchRequest, Refusal
from shardpipe.store import parsed
from tests.serve.serving import ROOT, Server, running
from tests.speech import pack_speech

PAGE = (ROOT / "docs" / "service.md").read_text()
ABOUT, REQUEST, ERROR = (json.loads(block) for block in re.findall(r"```json\n(.*?)```", PAGE, re.DOTALL))


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return pack_speech(tmp_path_factory.mktemp("protocol"), 8, shard_samples=8, codecs=("flac", "opus"))


@pytest.fixture(scope="module")
def server(data: Path) -> Iterator[Server]:
    with running(data, "--name", "speech") as one:
        yield one


def asked(server: Server, method: str, path: str, body: bytes = b"", **headers: str) -> tuple[int, Any, bytes]:
    connection = http.client.HTTPConnection(server.url.partition("://")[2], timeout=60)
    try:
        connection.request(method, path, body, headers)
        answer = connection.getresponse()
        return answer.status, answer.headers, answer.read()
    finally:
        connection.close()


def request(server: Server, **fields: Any) -> bytes:
    about = json.loads(asked(server, "GET", "/about")[2])
    datasets = [{"name": "speech", "fingerprint": about["datasets"]["speech"]["fingerprint"]}]
    wanted = REQUEST | {"datasets": datasets, "transform": None} | fields
    return json.dumps(wanted, separators=(",", ":")).encode()


def test_the_examples_are_what_they_say() -> None:
    assert set(parsed(json.dumps(ABOUT), About).datasets) == set(ABOUT["datasets"])
    assert json.loads(BatchRequest.parse(json.dumps(REQUEST).encode()).body()) == REQUEST
    assert list(json.loads(BatchRequest.parse(json.dumps(REQUEST).encode()).body())) == list(REQUEST)
    assert parsed(json.dumps(ERROR), Refusal).key == ERROR["key"]


@pytest.mark.parametrize("ordinals", [(0, 2, 4), (1, 3)], ids=["flac", "opus"])
def test_a_batch_is_read_as_specified(data: Path, server: Server, ordinals: tuple[int, ...]) -> None:
    body = request(server, samples=[[0, 0, i] for i in ordinals], weights=[1] * len(ordinals))
    status, headers, answer = asked(server, "POST", "/batch", body)
    assert (status, int(headers["Content-Length"])) == (200, len(answer))
    size = int.from_bytes(answer[:8], "little")
    start = b'{"__metadata__":{"checksum":"'
    assert answer[8:].startswith(start)
    at = 8 + len(start)
    assert int(answer[at : at + 8], 16) == zlib.crc32(answer[:at] + b"00000000" + answer[at + 8 :])
    header = json.loads(answer[8 : 8 + size])
    metadata, end, tensors = header.pop("__metadata__"), 0, {}
    for name, tensor in header.items():
        begin, stop = tensor["data_offsets"]
        assert begin == end
        dtype = {"I64": "<i8", "F32": "<f4", "I16": "<i2"}[tensor["dtype"]]
        tensors[name] = np.frombuffer(answer[8 + size + begin : 8 + size + stop], dtype).reshape(tensor["shape"])
        end = stop
    assert 8 + size + end == len(answer)
    assert (metadata["format"], metadata["skipped"]) == ("1", "[]")
    assert metadata["request"] == hashlib.sha256(body).hexdigest()[:32]
    audio = tensors["audio"] / np.float32(32768) if tensors["audio"].dtype == np.int16 else tensors["audio"]
    own = {key: (one, n) for key, one, n in samples_of(data)}
    said = json.loads(metadata["batch"])
    assert (len(said["keys"]), said["sample_rate"]) == (len(ordinals), 16000)
    assert tensors["weights"].tolist() == [1.0] * len(ordinals)
    rows = np.split(audio, np.cumsum(tensors["lengths"]))
    assert (said["channels"], len(rows.pop())) == (None, 0)
    for key, row, length in zip(said["keys"], rows, tensors["lengths"]):
        mine, n = own[key]
        assert (length, row.tobytes()) == (n, mine.tobytes())


def samples_of(data: Path) -> Iterator[tuple[str, Any, int]]:
    for batch in ShardLoader(data, batch_size=1):
        yield batch.keys[0], batch.audio[0].numpy(), int(batch.lengths[0])


def test_the_index_comes_in_ranges(server: Server) -> None:
    path = "/index/speech/shardindex.json"
    status, headers, whole = asked(server, "GET", path)
    assert (status, bool(headers["ETag"])) == (200, True)
    for wanted, first, last in (
        ("bytes=0-0", 0, 0),
        ("bytes=5-", 5, len(whole) - 1),
        ("bytes=9-99999", 9, len(whole) - 1),
    ):
        status, headers, part = asked(server, "GET", path, Range=wanted)
        assert (status, part) == (206, whole[first : last + 1])
        assert headers["Content-Range"] == f"bytes {first}-{last}/{len(whole)}"
        digest = base64.b64encode(hashlib.sha256(part).digest()).decode()
        assert headers["Content-Digest"] == f"sha-256=:{digest}:"
    part = "/index/speech/index/part-00000.parquet"
    for wanted in ("bytes=5-3", "bytes=-5", "bytes=99999999-", "bytes=0-1,3-4", "lines=0-1"):
        assert [asked(server, "GET", file, Range=wanted)[0] for file in (path, part)] == [416, 416]
    assert asked(server, "GET", "/index/speech/shard-000000.tar")[0] == 404
    assert asked(server, "GET", "/index/speech/../../packed/shardindex.json")[0] == 404


def test_errors_have_the_status_that_is_specified(server: Server) -> None:
    wrong = [
        (400, b"{}"),
        (400, request(server, more=1)),
        (400, request(server, samples=[[0, 0, 99]], weights=[1])),
        (400, request(server, weights=[1])),
        (404, request(server, datasets=[{"name": "other", "fingerprint": "0" * 64}])),
        (409, request(server, datasets=[{"name": "speech", "fingerprint": "0" * 64}])),
        (409, request(server, transform="louder")),
        (422, request(server, channels=3)),
    ]
    for status, body in wrong:
        found, _, document = asked(server, "POST", "/batch", body)
        assert (found, bool(parsed(document, Refusal).what)) == (status, True), document
    assert asked(server, "GET", "/batch")[0] == 404
    assert asked(server, "POST", "/batch", b" " * ((4 << 20) + 1))[0] == 413
    assert [asked(server, "GET", path)[::2] for path in ("/healthz", "/readyz")] == [(200, b"")] * 2
