"""What is tried again, how often and after which waits; and that nothing which is said holds credentials."""

from __future__ import annotations

import gc
import http.server
import io
import pickle
import socket
import ssl
import threading
import traceback
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import aiohttp
import botocore.exceptions
import fsspec
import pytest
from botocore.exceptions import ClientError
from fsspec.implementations.memory import MemoryFileSystem
from s3fs.errors import translate_boto_error

from shardpipe.errors import ConfigError, StoreError
from shardpipe.store import CountingStore, FailingStore, FsspecStore, LocalStore, Retry, RetryingStore
from shardpipe.store.faults import may_pass
from shardpipe.store.redact import scrub, secrets_in, shown_url
from shardpipe.store.retry import attempted
from tests.forking import ended, forked, needs_fork


def passing(message: str = "busy") -> StoreError:
    return StoreError(message, url="s3://b/x", fix="Wait.", transient=True)


def failing_times(n: int, error: StoreError) -> Any:
    left = [error] * n

    def action() -> str:
        if left:
            raise left.pop()
        return "done"

    return action


# --- Attempts and waits -----------------------------------------------------------------------------------------------


def test_waits_double_up_to_a_bound_and_are_drawn_in_full() -> None:
    waits: list[float] = []
    retry = Retry(attempts=8, first_wait=0.5, longest_wait=6.0)
    shares = iter([1.0, 0.0, 0.5, 1.0, 1.0, 0.25, 1.0])
    action = failing_times(7, passing())
    assert attempted(action, retry, sleep=waits.append, jitter=lambda: next(shares)) == "done"
    assert waits == [0.5, 0.0, 1.0, 4.0, 6.0, 1.5, 6.0]


def test_the_last_attempt_says_how_many_there_were() -> None:
    waits: list[float] = []
    with pytest.raises(StoreError, match=r"s3://b/x: busy, after 4 attempts\. Wait\.") as raised:
        attempted(failing_times(4, passing()), Retry(attempts=4), sleep=waits.append)
    assert (raised.value.attempts, len(waits)) == (4, 3)


def test_what_does_not_pass_is_not_tried_again() -> None:
    with pytest.raises(StoreError, match="x: gone") as raised:
        attempted(
            failing_times(1, StoreError("gone", url="x", fix="")), Retry(), sleep=lambda _: pytest.fail("has waited")
        )
    assert raised.value.attempts == 1


def test_waits_do_not_overflow() -> None:
    assert Retry(longest_wait=7.0).longest(100_000) == 7.0


def test_large_reads_may_take_longer() -> None:
    retry = Retry(attempt_seconds=3.0, slowest=1e6)
    assert retry.limit() == 3.0
    assert retry.limit(2_000_000) == 5.0


@pytest.mark.parametrize("setting", ["attempts", "attempt_seconds", "slowest"])
def test_settings_are_checked(setting: str) -> None:
    with pytest.raises(ConfigError, match=setting):
        Retry(**{setting: 0})


def test_any_store_can_be_asked_again(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"12345")
    counting = CountingStore(LocalStore(tmp_path))
    failing = FailingStore(counting, [TimeoutError(), ConnectionResetError(104, "reset"), lambda data: data[:2]])
    store = RetryingStore(failing, Retry(attempts=4, first_wait=0))
    assert store.read("x", 1, 3) == b"234"
    assert counting.reads == [("x", 1, 3)] * 2
    store = RetryingStore(FailingStore(counting, [PermissionError("denied")]), Retry(first_wait=0))
    with pytest.raises(StoreError, match="denied"):
        store.read("x", 1, 3)


# --- Which faults may pass --------------------------------------------------------------------------------------------


def answered(status: int, code: str) -> Exception:
    response = {"Error": {"Code": code, "Message": "m"}, "ResponseMetadata": {"HTTPStatusCode": status}}
    error: Exception = translate_boto_error(ClientError(response, "GetObject"))
    return error


def http_status(status: int) -> Exception:
    return aiohttp.ClientResponseError(None, (), status=status)  # type: ignore[arg-type]


def wrapped(error: Exception) -> Exception:
    try:
        try:
            raise error
        except Exception as inner:
            raise RuntimeError("the library says") from inner
    except RuntimeError as outer:
        return outer


@pytest.mark.parametrize(
    "error",
    [
        TimeoutError(),
        fsspec.FSTimeoutError(),
        ConnectionResetError(104, "reset"),
        ConnectionRefusedError(111, "refused"),
        BrokenPipeError(32, "pipe"),
        EOFError(),
        OSError(113, "no route"),
        answered(500, "InternalError"),
        answered(503, "SlowDown"),
        answered(503, "503"),
        answered(429, "TooManyRequests"),
        answered(400, "RequestTimeout"),
        http_status(502),
        http_status(429),
        aiohttp.ClientPayloadError("Response payload is not completed"),
        aiohttp.ServerDisconnectedError(),
        aiohttp.ClientOSError(),
        botocore.exceptions.ReadTimeoutError(endpoint_url="u"),
        botocore.exceptions.ConnectTimeoutError(endpoint_url="u"),
        botocore.exceptions.EndpointConnectionError(endpoint_url="u"),
        botocore.exceptions.ConnectionClosedError(endpoint_url="u"),
        botocore.exceptions.IncompleteReadError(actual_bytes=1, expected_bytes=2),
        wrapped(ConnectionResetError(104, "reset")),
        wrapped(http_status(503)),
    ],
    ids=repr,
)
def test_faults_that_may_pass(error: Exception) -> None:
    assert may_pass(error)


@pytest.mark.parametrize(
    "error",
    [
        FileNotFoundError(2, "none"),
        PermissionError(13, "denied"),
        IsADirectoryError(21, "folder"),
        NotImplementedError(),
        ImportError("install gcsfs"),
        ValueError("what"),
        OSError(22, "invalid"),
        OSError(28, "no space left"),
        answered(404, "NoSuchKey"),
        answered(403, "AccessDenied"),
        answered(403, "InvalidAccessKeyId"),
        answered(400, "ExpiredToken"),
        answered(416, "InvalidRange"),
        answered(501, "NotImplemented"),
        http_status(401),
        http_status(404),
        botocore.exceptions.NoCredentialsError(),
        botocore.exceptions.PartialCredentialsError(provider="env", cred_var="key"),
        botocore.exceptions.SSLError(endpoint_url="u", error="e").with_traceback(None),
        wrapped(http_status(403)),
        wrapped(ssl.SSLCertVerificationError("self-signed")),
    ],
    ids=repr,
)
def test_faults_that_stay(error: Exception) -> None:
    if isinstance(error, botocore.exceptions.SSLError):
        error.__cause__ = ssl.SSLCertVerificationError("self-signed")
    assert not may_pass(error)


# --- Credentials ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("s3://bucket/set", "s3://bucket/set"),
        ("https://me:hunter22@host:8/set?sig=abc%2F", "https://host:8/set"),
        ("ftp://p%40ss:x@y@host/a@b/c", "ftp://host/a@b/c"),
        ("https://token@host", "https://host"),
        ("simplecache::s3://me:hunter22@bucket/set", "simplecache::s3://bucket/set"),
        ("s3://me:hun/ter/22@bucket/set?x=1", "s3://bucket/set"),
        ("simplecache::gs://me:hun/ter22@bucket/set", "simplecache::gs://bucket/set"),
        ("s3://bucket/a:b@c/set", "s3://bucket/a:b@c/set"),
        ("/data/a?b", "/data/a?b"),
    ],
)
def test_a_url_is_shown_without_what_is_secret(url: str, shown: str) -> None:
    assert shown_url(url) == shown


@pytest.mark.parametrize(
    ("text", "scrubbed"),
    [
        ("cannot open https://a:b@h/x?sig=1 now", "cannot open https://h/x now"),
        ("cannot open s3://me:hun/ter22@b/x now", "cannot open s3://b/x now"),
        ("no bucket 'gcs://me:hun/ter22@b'", "no bucket 'gcs://b'"),
        ("cannot open s3://b/x: mail a@b", "cannot open s3://b/x: mail a@b"),
        ("x-amz-security-token: FwoGZX, next", "x-amz-security-token: ***, next"),
        ("{'aws_secret_access_key': 'wJalr/X', 'region': 'r'}", "{'aws_secret_access_key': '***', 'region': 'r'}"),
        ("Authorization: Bearer abc.def", "Authorization: ***"),
        ("no such key AKIAIOSFODNN7EXAMPLE here", "no such key *** here"),
        ("it was given given-secret twice", "it was given *** twice"),
        ("The specified key does not exist: shard-000000.tar", "The specified key does not exist: shard-000000.tar"),
    ],
)
def test_texts_are_quoted_without_what_is_secret(text: str, scrubbed: str) -> None:
    assert scrub(text, {"given-secret"}) == scrubbed


def test_secrets_are_found_in_urls_and_options() -> None:
    found = secrets_in(
        "https://me:p%40ss@host/set?sig=s%2Fig&sv=2",
        {"key": "id", "anon": False, "client_kwargs": {"aws_session_token": "tok", "region_name": "eu"}, "sas": b"raw"},
    )
    assert {"me", "p%40ss", "p@ss", "s%2Fig", "s/ig", "id", "tok", "raw"} <= found
    assert not {"eu", "host", ""} & found


class Telling(MemoryFileSystem):
    """Its errors tell all they know."""

    protocol = "telling"
    error: type[Exception] = RuntimeError

    def cat_file(self, path: str, start: int | None = None, end: int | None = None, **_: object) -> bytes:
        try:
            raise ValueError(f"inner: {self.storage_options}")
        except ValueError as error:
            raise self.error(f"outer: {self.storage_options['password']}") from error


@pytest.mark.parametrize("kind", [RuntimeError, ConnectionResetError, FileNotFoundError])
def test_nothing_that_is_said_holds_credentials(
    kind: type[Exception], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("DEBUG")
    fsspec.register_implementation("telling", Telling, clobber=True)
    monkeypatch.setattr(Telling, "error", kind)
    store = FsspecStore(
        "telling://user1:hunter22@place/set?sig=5ig",
        retry=Retry(attempts=2, first_wait=0),
        password="swordfish",
        headers={"Authorization": "Bearer opensesame"},
    )
    with pytest.raises(StoreError) as raised:
        store.read("x", 0, 4)
    assert raised.value.url == "telling://place/set/x"
    told = [str(raised.value), repr(raised.value), caplog.text, store.url, repr(store)]
    told += traceback.format_exception(raised.value)
    told += traceback.format_exception(pickle.loads(pickle.dumps(raised.value)))
    secrets = ["user1", "hunter22", "5ig", "swordfish", "opensesame"]
    assert not [secret for secret in secrets if secret in "".join(told)]
    assert store.parallel == pickle.loads(pickle.dumps(store)).parallel


def test_causes_without_secrets_stay() -> None:
    with pytest.raises(StoreError) as raised:
        FsspecStore("memory://nothing").read("x", 0, 4)
    assert isinstance(raised.value.__cause__, FileNotFoundError)


# --- Over HTTP --------------------------------------------------------------------------------------------------------


@pytest.fixture
def website(tmp_path: Path) -> Iterator[tuple[str, list[tuple[str, str]]]]:
    """A server that knows no ranges, and (path, Authorization) of what it was asked for."""
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "x").write_bytes(b"0123456789")
    asked: list[tuple[str, str]] = []

    class Handler(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            asked.append((self.path, self.headers.get("Authorization", "")))

        def send_head(self) -> Any:
            if self.path.rpartition("/")[2] in ("403", "503"):
                return self.send_error(int(self.path[-3:]))
            if "unsized" not in self.path:
                return super().send_head()
            self.send_response(200)
            self.end_headers()
            return io.BytesIO(b"0123456789")

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, directory=str(tmp_path))) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.05,))
        thread.start()
        yield f"127.0.0.1:{server.server_port}/set", asked
        server.shutdown()
        thread.join()


@needs_fork
def test_a_forked_process_leaves_its_parents_connections_alone(
    website: tuple[str, list[tuple[str, str]]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(http.server.SimpleHTTPRequestHandler, "protocol_version", "HTTP/1.1")  # it keeps them open
    place, _ = website
    store = FsspecStore(f"http://{place}", retry=Retry(attempts=1))
    assert store.read("x") == b"0123456789"

    def reads() -> None:
        store.read("x")
        gc.collect()

    assert ended(forked(reads)) == 0
    assert store.read("x") == b"0123456789"


def test_a_query_string_goes_with_every_file(website: tuple[str, list[tuple[str, str]]]) -> None:
    place, asked = website
    store = FsspecStore(f"http://me:hunter22@{place}?sig=abc")
    assert store.url == f"http://{place}"
    assert store.read("x") == b"0123456789"
    assert {path for path, _ in asked} == {"/set/x?sig=abc"}
    assert all(authorization.startswith("Basic ") for _, authorization in asked)


def test_a_server_that_ignores_ranges_is_told_of(website: tuple[str, list[tuple[str, str]]]) -> None:
    place, _ = website
    with pytest.raises(StoreError, match="asked for 3 bytes at 2, got 10.*ranges") as raised:
        FsspecStore(f"http://{place}").read("x", 2, 3)
    assert raised.value.attempts == 1


def test_a_server_that_tells_no_size_is_told_of(website: tuple[str, list[tuple[str, str]]]) -> None:
    place, _ = website
    with pytest.raises(StoreError, match="does not say how large"):
        FsspecStore(f"http://{place}").stat("unsized")


@pytest.mark.parametrize(
    ("name", "told", "attempts"),
    [("missing", "there is no such file", 1), ("403", "403.*Forbidden", 1), ("503", "503.*Unavailable", 2)],
)
def test_what_refuses_to_tell_a_size_is_not_called_missing(
    website: tuple[str, list[tuple[str, str]]], name: str, told: str, attempts: int
) -> None:
    place, _ = website
    store = FsspecStore(f"http://me:hunter22@{place}", retry=Retry(attempts=2, first_wait=0.0))
    with pytest.raises(StoreError, match=told) as raised:
        store.read(name)
    assert raised.value.attempts == attempts
    assert "hunter22" not in "".join(traceback.format_exception(raised.value))


def test_where_nobody_listens_files_are_not_called_missing() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    with pytest.raises(StoreError, match=r"Cannot connect.*after 2 attempts.*network") as raised:
        FsspecStore(f"http://127.0.0.1:{port}/set", retry=Retry(attempts=2, first_wait=0.0)).read("x")
    assert raised.value.attempts == 2
