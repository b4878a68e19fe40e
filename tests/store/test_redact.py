"""Nothing that is said holds credentials."""

from __future__ import annotations

import pickle
import subprocess
import sys
import traceback

import fsspec
import pytest
from fsspec.implementations.memory import MemoryFileSystem

from shardpipe.errors import StoreError
from shardpipe.store import FsspecStore, Retry
from shardpipe.store.redact import scrub, secrets_in, shown_url


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


HOSTILE = [
    *("a", "-", "secret", "secret-", "secret ", "secret:", "secret=", "secret" + 9 * " ", "access_key'", "'", " "),
    *("://", "s3://", "s3://a", "s3://a:", "s3://a:/", "s3://a:b@", "s3://:", "https://a@", "://a?", "?", "@", ":"),
    *("AKIA", "A", "Bearer ", "secret=Bearer ", "secret: b'", "x::", "x::s3://", "é", "=", "a=", "(", "&", "\n"),
]
LINEAR = """
import sys
from shardpipe.store.redact import scrub, secrets_in, shown_url
for piece in sys.argv[1:]:
    print(repr(piece), flush=True)
    for text in (piece * (1_000_000 // len(piece)), "s3://" + piece * (1_000_000 // len(piece)) + "@"):
        scrub(text), shown_url(text), secrets_in(text, {})
"""


def test_long_texts_take_no_longer_than_their_length() -> None:
    """A minute is far more than it takes, and far less than the hours of what takes time by the square of a million."""
    try:
        subprocess.run([sys.executable, "-c", LINEAR, *HOSTILE], capture_output=True, check=True, timeout=60)
    except subprocess.TimeoutExpired as error:
        pytest.fail(f"no end in sight: {(error.stdout or b'').splitlines()[-1:]}")


@pytest.mark.parametrize(
    ("text", "scrubbed"),
    [
        ("a: secret=xyz", "a: secret=***"),
        ("secret=token=abc;x", "secret=***;x"),
        ("my-secret-thing = 'a b'", "my-secret-thing = '*** b'"),
        ("secret secret: x", "secret secret: ***"),
        ("secret", "secret"),
        ("s3://a/x,s3://k:s/e@b/y", "s3://a/x,s3://b/y"),
        ("s3://k:s@b,s3://k:t@c", "s3://c"),
        ("http://a:b@c@d/e@f", "http://d/e@f"),
        ("s3://a/x?y=1,https://b/z?w=2 and ?c", "s3://a/x and ?c"),
        ("(see https://b/z?w=2)", "(see https://b/z)"),
    ],
)
def test_texts_of_several_secrets(text: str, scrubbed: str) -> None:
    assert scrub(text) == scrubbed


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
