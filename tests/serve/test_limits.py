"""What clients cannot do to a server, whatever they send, and who is a client at all."""

from __future__ import annotations

import datetime
import ipaddress
import json
import logging
import random
import signal
import socket
import struct
import subprocess
import sys
import threading
import traceback
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import psutil
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from shardpipe import ShardLoader
from shardpipe.errors import ConfigError, StoreError
from shardpipe.loading.served.access import Access
from shardpipe.serve import ServeConfig
from shardpipe.store import Retry
from tests.serve.serving import MAIN, ROOT, Server, assert_same, batches_of, running
from tests.speech import pack_speech

CONNECTIONS = 20
FEW = f"""
import shardpipe.serve.running as running
connections = running.Connections
running.Connections = lambda server, limit: connections(server, {CONNECTIONS})
{MAIN}
"""
MEMORY = 64 << 20
KEEP = 8 << 20
BOUND = 2 * (MEMORY + KEEP) + (96 << 20)
"""Bytes by which a server may grow under all that comes: what it was told, twice, for the allocator keeps what was
freed, 32 bodies as they are read, and buffers."""
PLAN: dict[str, Any] = {"batch_size": 4, "seed": 1}
OLD, NEW = "0123456789abcdef-old", "0123456789abcdef-new"


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return pack_speech(tmp_path_factory.mktemp("limits"), 60, seconds=(0.05, 0.3))


@pytest.fixture(scope="module")
def good(data: Path) -> dict[str, Any]:
    """A request."""
    return {
        "format": 1,
        "datasets": [{"name": "speech", "fingerprint": ShardLoader(data, **PLAN).state_dict()["fingerprint"]}],
        "samples": [[0, 0, 0]],
        "weights": [1],
        "seed": 0,
        "dtype": "float32",
        "channels": "error",
        "sample_rate": None,
        "on_error": "raise",
        "transform": None,
        "collate": None,
        "place": None,
    }


@pytest.fixture(scope="module")
def server(data: Path) -> Iterator[Server]:
    with running(data, "--name", "speech", "--memory", MEMORY, "--keep", KEEP, main=FEW) as server:
        yield server


def place(server: Server) -> tuple[str, int]:
    host, _, port = server.url.rpartition("/")[2].rpartition(":")
    return host, int(port)


def said(server: Server, data: bytes, *, half: bool = False, seconds: float = 20) -> bytes:
    """All that the server answers before it closes the connection."""
    came = b""
    with socket.create_connection(place(server), seconds) as sock, suppress(ConnectionError):
        sock.sendall(data)
        if half:
            with suppress(OSError):  # the server has closed it already
                sock.shutdown(socket.SHUT_WR)
        while more := sock.recv(1 << 16):
            came += more
    return came


def posted(body: bytes, *lines: bytes) -> bytes:
    head = b"".join(line + b"\r\n" for line in (b"Host: x", b"Connection: close", *lines))
    return b"POST /batch HTTP/1.1\r\n" + head + b"Content-Length: %d\r\n\r\n" % len(body) + body


def asked(path: str, *lines: str, method: str = "GET") -> bytes:
    return "".join(
        f"{line}\r\n" for line in (f"{method} {path} HTTP/1.1", "Host: x", "Connection: close", *lines, "")
    ).encode()


def status(answer: bytes) -> int:
    return int(answer.split()[1]) if answer else 0


class Hostile:
    """Draws what a client should not send."""

    def __init__(self, good: dict[str, Any], seed: int) -> None:
        self._good = good
        self._random = random.Random(seed)

    def request(self) -> bytes:
        kinds = (self._noise, self._head, self._path, self._range, self._body, self._body, self._field, self._bomb)
        return self._random.choice(kinds)()

    def _noise(self) -> bytes:
        return self._random.randbytes(self._random.randrange(1, 3000)) + b"\r\n\r\n"

    def _head(self) -> bytes:
        long = b"x" * self._random.choice((100, 9000, 70000))
        return self._random.choice(
            (
                b"GET /" + long + b" HTTP/1.1\r\n\r\n",
                b"GET / HTTP/1.1\r\nX: " + long + b"\r\n\r\n",
                b"GET / HTTP/1.1\r\n" + b"".join(b"X-%d: y\r\n" % i for i in range(len(long) // 10)) + b"\r\n",
                b"GET / HTTP/9.9\r\n\r\n",
                b"POST /batch HTTP/1.1\r\nContent-Length: -1\r\n\r\n",
                b"POST /batch HTTP/1.1\r\nContent-Length: 9" + b"9" * 30 + b"\r\n\r\n",
                b"POST /batch HTTP/1.1\r\nContent-Length: 3\r\nContent-Length: 4\r\n\r\nabc",
                b"POST /batch HTTP/1.1\r\nTransfer-Encoding: chunked\r\nContent-Length: 3\r\n\r\nabc",
                b"POST /batch HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\nabc",
                b"POST /batch HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\nffffffffffffffffff\r\nabc",
                b"GET / HTTP/1.1\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n" + long,
                b"CONNECT a:1 HTTP/1.1\r\n\r\n" + long,
                b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
            )
        )

    def _path(self) -> bytes:
        file = self._random.choice(
            ("../shard-000000.tar", "..%2f..%2fetc/passwd", "/etc/passwd", "%00", "shard-000000.tar", "index/job.json")
        )
        return asked(f"/index/speech/{file}")

    def _range(self) -> bytes:
        given = self._random.choice(
            ("5-3", "-5", "x", "0-0,5-9", "99999999999999999-", f"0-{'9' * 18}", f"0-{'9' * 30}", "5-", "\u0663-4")
        )
        return asked("/index/speech/shardindex.json", f"Range: bytes={given}")

    def _body(self) -> bytes:
        whole = json.dumps(self._good).encode()
        start, stop = sorted(self._random.randrange(len(whole)) for _ in range(2))
        return posted(whole[:start] + self._random.randbytes(self._random.randrange(4)) + whole[stop:])

    def _field(self) -> bytes:
        value = self._random.choice(
            (
                None,
                -1,
                0,
                1,
                2**62,
                2**64,
                10**400,
                1.5,
                "",
                "x" * 1000,
                [],
                {},
                [[0, 0, 10**9]],
                [[0, 2**62, 0]],
                [[1]],
            )
        )
        name = self._random.choice([*self._good, "unknown"])
        return posted(json.dumps({**self._good, name: value}).encode())

    def _bomb(self) -> bytes:
        if self._random.random() < 0.9:  # the others take the client a while as well
            return posted(b"[" * self._random.choice((50, 10_000)))
        deep, n = self._random.choice((10_000, 1_000_000)), self._random.choice((1000, 65536, 65537))
        name, good = self._random.choice(list(self._good)), self._good
        place = {"epoch": 0, "consumed_samples": 0, "state": {}}
        many = {"samples": [[0, self._random.randrange(2**60), 0]] * n, "weights": [1] * n}
        bombs: list[Callable[[], bytes]] = [
            lambda: posted(b'{"place":' * deep),
            lambda: posted(json.dumps({**good, "place": place}).replace("{}", '{"a":' * 90 + "0" + "}" * 90).encode()),
            lambda: posted(json.dumps({**good, "seed": float("nan")}).encode()),
            lambda: posted(json.dumps(good).replace('"seed"', f'"{name}": 0, "seed"').encode()),
            lambda: posted(b"1" * deep),
            lambda: posted(json.dumps({**good, **many}).encode()),
            lambda: posted(b" " * (5 << 20)),
            lambda: posted(zlib.compress(bytes(1 << 24)), b"Content-Encoding: deflate"),
        ]
        return self._random.choice(bombs)()


def fuzzed(server: Server, good: dict[str, Any], requests: int) -> Counter[int]:
    """What hostile requests were answered by, from a few clients at once: whole, cut, half closed, or never read."""
    found: Counter[int] = Counter()

    def client(seed: int) -> None:
        draw, hostile = random.Random(seed), Hostile(good, seed)
        for _ in range(requests // 4):
            request = hostile.request()
            how = draw.random()
            if how < 0.8:
                found[status(said(server, request, half=how < 0.1, seconds=60))] += 1
                continue
            with suppress(ConnectionError), socket.create_connection(place(server), 60) as sock:
                cut = draw.randrange(len(request)) if how < 0.9 else len(request)
                sock.sendall(request[:cut])
                found[-1] += 1
                if how > 0.95:
                    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))

    failed: list[BaseException] = []

    def guarded(seed: int) -> None:
        try:
            client(seed)
        except BaseException as error:
            failed.append(error)

    threads = [threading.Thread(target=guarded, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failed, failed
    return found


def grown(server: Server, before: int) -> int:
    assert server.process is not None
    return memory(server) - before


def memory(server: Server) -> int:
    assert server.process is not None
    return int(psutil.Process(server.process.pid).memory_info().rss)


def assert_well(server: Server, data: Path) -> None:
    assert_same(batches_of(data, servers=[f"{server.url}/speech"], **PLAN), batches_of(data, **PLAN))
    assert "Traceback" not in server.log, server.log


def under_fuzz(server: Server, data: Path, good: dict[str, Any], requests: int) -> None:
    assert_well(server, data)
    before = memory(server)
    found = fuzzed(server, good, requests)
    print(f"{sum(found.values())} requests, answered {dict(found)}, grown by {grown(server, before) >> 20} MiB")
    assert_well(server, data)
    assert grown(server, before) < BOUND
    assert set(found) <= {-1, 0, 200, 206, 400, 404, 408, 409, 413, 416, 422, 429}
    assert {200, 400, 404, 413, 416} <= set(found)


def test_hostile_requests(server: Server, data: Path, good: dict[str, Any]) -> None:
    under_fuzz(server, data, good, 2400)


@pytest.mark.soak
def test_a_hundred_thousand_hostile_requests(server: Server, data: Path, good: dict[str, Any]) -> None:
    under_fuzz(server, data, good, 100_000)


def test_many_connections(server: Server, data: Path) -> None:
    """Who holds them open and says nothing, or but half of something, gives way to others."""
    with ExitStack() as stack:
        for i in range(5 * CONNECTIONS):
            with suppress(ConnectionError):
                sock = stack.enter_context(socket.create_connection(place(server)))
                sock.sendall((b"", b"GET / HT", b"POST /batch HTTP/1.1\r\nContent-Le")[i % 3])
        assert_well(server, data)


def test_connections_that_have_ended_do_not_count(server: Server) -> None:
    for _ in range(3 * CONNECTIONS):
        assert status(said(server, asked("/healthz"))) == 200


def test_bodies_that_hardly_come(server: Server, data: Path) -> None:
    """Who is slow to send a large one is waited for by nobody else."""
    head = b"POST /batch HTTP/1.1\r\nHost: x\r\nContent-Length: 1000000\r\n\r\n{"
    with running(data, "--name", "speech") as other, ExitStack() as stack:
        slow = [stack.enter_context(socket.create_connection(place(other))) for _ in range(40)]
        for sock in slow:
            sock.sendall(head)
        answer = said(other, posted(b"{}"))
        for sock in slow:
            sock.setblocking(False)
            with pytest.raises(BlockingIOError):  # none of them has been given up yet
                sock.recv(1)
        assert status(answer) == 400


def test_answers_that_are_never_read(data: Path, good: dict[str, Any]) -> None:
    """They take room, beyond which others wait, and never more."""
    ahead = asked("/index/speech/shardindex.json").replace(b"Connection: close\r\n", b"") * 2000
    with (
        running(data, "--name", "speech", "--memory", MEMORY, "--keep", KEEP, main=FEW) as server,
        ExitStack() as stack,
    ):
        before = memory(server)
        for _ in range(CONNECTIONS // 4):
            sock = stack.enter_context(socket.create_connection(place(server)))
            sock.setblocking(False)
            with suppress(BlockingIOError, ConnectionError):
                sent = 0
                while sent < len(ahead):
                    sent += sock.send(ahead[sent:])
        assert_well(server, data)
        assert grown(server, before) < BOUND


def test_requests_ahead_of_their_answers(server: Server, good: dict[str, Any]) -> None:
    """Pipelined, each gets its own."""
    files = ["/healthz", "/nothing", "/readyz", "/index/speech/../x"] * 10
    data = b"".join(asked(file).replace(b"Connection: close\r\n", b"") for file in files) + asked("/healthz")
    answers = said(server, data).split(b"HTTP/1.1 ")[1:]
    assert [int(answer[:3]) for answer in answers] == [200, 404, 200, 404] * 10 + [200]


def test_large_requests_take_room(data: Path, good: dict[str, Any]) -> None:
    """By their own size, before a batch of theirs is begun."""
    many = {"samples": [[0, 0, 0]] * 65536, "weights": [0] * 65536}
    body = json.dumps({**good, **many}).encode()
    with running(data, "--name", "speech", "--memory", "32MiB") as server:
        answer = said(server, posted(body))
        assert status(answer) == 413
        assert b"a batch takes 67,108,864 bytes" in answer


@pytest.mark.parametrize("wanted", ["5-3", "x", "0-0,2-3", "999999999-"])
def test_ranges_that_are_none(server: Server, data: Path, wanted: str) -> None:
    for file in ("shardindex.json", "index/part-00000.parquet"):
        assert (data / file).exists()
        answer = said(server, asked(f"/index/speech/{file}", f"Range: bytes={wanted}"))
        assert (status(answer), answer.partition(b"\r\n\r\n")[2]) == (416, b"")


def test_what_is_no_http_hears_nothing_of_the_server(server: Server) -> None:
    for data in (b"GARBAGE secret\r\n\r\n", asked("/", "X: " + "x" * 9000)):
        answer = said(server, data)
        head, _, body = answer.partition(b"\r\n\r\n")
        assert (status(answer), body) == (400, b"")
        assert b"python" not in head.lower()


@pytest.fixture
def tokens(tmp_path: Path) -> Path:
    file = tmp_path / "tokens"
    file.write_text(f"{OLD}\n")
    return file


@pytest.fixture
def token(tmp_path: Path) -> Path:
    file = tmp_path / "token"
    file.write_text(f"{OLD}\n")
    return file


def test_nobody_without_a_token_gets_anything(data: Path, tokens: Path, good: dict[str, Any]) -> None:
    paths = [
        "/",
        "/about",
        "/metrics",
        "/batch",
        "/index/speech/shardindex.json",
        "/unknown",
        "/healthz/x",
        "//healthz",
    ]
    shown = [
        (),
        (f"Authorization: Bearer {NEW}",),
        (f"Authorization: Basic {OLD}",),
        (f"Authorization: Bearer {OLD}x",),
    ]
    shown += [("Authorization: Bearer \u00fc",), ("Expect: 100-continue",), ("Expect: something",), ("Authorization:",)]
    with running(data, "--name", "speech", "--token-file", tokens) as server:
        for path in paths:
            for method in ("GET", "HEAD", "POST", "PUT", "DELETE", "OPTIONS", "PATCH", "TRACE"):
                for lines in shown:
                    answer = said(server, asked(path, *lines, method=method))
                    head, _, body = answer.partition(b"\r\n\r\n")
                    assert (status(answer), body) == (401, b""), (path, method, lines, answer)
                    assert b"server" not in head.lower()
        for path in ("/healthz", "/readyz"):
            for method in ("GET", "HEAD"):
                answer = said(server, asked(path, method=method))
                assert (status(answer), answer.partition(b"\r\n\r\n")[2]) == (200, b"")
        answer = said(server, posted(json.dumps(good).encode(), f"Authorization: Bearer {OLD}".encode()))
        assert status(answer) == 200
        assert OLD not in server.log


def test_tokens_change_under_a_run(
    data: Path, tokens: Path, token: Path, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    """The server takes both, then the client has the new one, then the old one is taken away."""
    caplog.set_level(logging.DEBUG)
    with running(data, "--name", "speech", "--token-file", tokens) as server:
        loader = ShardLoader(data, servers=[f"{server.url}/speech"], token_file=token, **PLAN)
        got = []
        for before, after in ((OLD, NEW), (NEW, OLD)) * 3:
            batches = iter(loader)
            got.append(next(batches))
            for theirs, ours in ((f"{before}\n{after}\n", before), (f"{before}\n{after}\n", after), (after, after)):
                tokens.write_text(theirs)
                server.signal(signal.SIGHUP)
                token.write_text(ours)
            got.extend(batches)
        assert_same(got, batches_of(data, rounds=6, **PLAN))
        token.write_text(f"{NEW}\n")
        with pytest.raises(StoreError, match="refuses the token") as error:
            list(ShardLoader(data, servers=[f"{server.url}/speech"], token_file=token, **PLAN))
        tokens.write_text("")
        server.signal(signal.SIGHUP)
        out, err = capfd.readouterr()
        told = "".join(traceback.format_exception(error.value)) + caplog.text + out + err + server.log
        assert OLD not in told
        assert NEW not in told


def test_all_calls_that_showed_the_old_token_show_the_new_one(token: Path) -> None:
    """Not only the first that is refused."""
    access = Access(token, None)
    shown = access.header
    assert not access.renewed(shown)
    token.write_text("")
    assert access.renewed(shown)  # it may be about to be written
    token.write_text(f"{NEW}\n")
    assert access.renewed(shown)
    assert access.renewed(shown)
    assert not access.renewed(access.header)


def certificate(folder: Path, host: str, *, days: int = 1, password: bytes | None = None) -> tuple[Path, Path]:
    """Files of a certificate that vouches for itself, and of its key."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, host)])
    now = datetime.datetime.now(datetime.UTC)
    try:
        alternative: x509.GeneralName = x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        alternative = x509.DNSName(host)
    made = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=10))
        .not_valid_after(now + datetime.timedelta(days=days))
        .add_extension(x509.SubjectAlternativeName([alternative]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    folder.mkdir()
    (folder / "cert.pem").write_bytes(made.public_bytes(serialization.Encoding.PEM))
    hidden = serialization.BestAvailableEncryption(password) if password else serialization.NoEncryption()
    (folder / "key.pem").write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, hidden)
    )
    return folder / "cert.pem", folder / "key.pem"


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shardpipe.loading.served.opening.Retry", lambda: Retry(attempts=2, first_wait=0.1))


def test_tls(data: Path, tmp_path: Path, tokens: Path, impatient: None) -> None:
    here = batches_of(data, **PLAN)
    cert, key = certificate(tmp_path / "right", "127.0.0.1")
    other, _ = certificate(tmp_path / "other", "127.0.0.1")
    options = ("--name", "speech", "--token-file", tokens, "--tls-cert", cert, "--tls-key", key)
    with running(data, *options, bind="0.0.0.0:0") as server:
        url = f"https://127.0.0.1:{place(server)[1]}/speech"
        assert_same(batches_of(data, servers=[url], token_file=tokens, tls_ca=cert, **PLAN), here)
        assert_same(batches_of(f"shardpipe+{url}", token_file=tokens, tls_ca=cert, **PLAN), here)
        for wrong in (other, None):
            with pytest.raises(StoreError, match="its certificate is not trusted .self.signed certificate"):
                batches_of(data, servers=[url], token_file=tokens, tls_ca=wrong, **PLAN)
        with pytest.raises(StoreError, match="certificate is not trusted .*localhost"):
            batches_of(data, servers=[url.replace("127.0.0.1", "localhost")], tls_ca=cert, token_file=tokens, **PLAN)
        with pytest.raises(StoreError, match="no server makes batches"):
            batches_of(data, servers=[url.replace("https", "http")], token_file=tokens, **PLAN)
        assert_same(batches_of(data, servers=[url], token_file=tokens, tls_ca=cert, **PLAN), here)
        assert "Traceback" not in server.log
    with running(data, "--name", "speech") as plain:
        with pytest.raises(StoreError, match="no server makes batches"):
            batches_of(data, servers=[f"https://127.0.0.1:{place(plain)[1]}/speech"], tls_ca=cert, **PLAN)
        assert "Traceback" not in plain.log
    cert, key = certificate(tmp_path / "old", "127.0.0.1", days=-1)
    with (
        running(data, "--name", "speech", "--tls-cert", cert, "--tls-key", key) as server,
        pytest.raises(StoreError, match="its certificate is not trusted .certificate has expired"),
    ):
        batches_of(data, servers=[f"{server.url}/speech"], tls_ca=cert, **PLAN)


def refused(*arguments: Any) -> str:
    """What `shardpipe serve` says of settings that cannot be."""
    done = subprocess.run(
        [sys.executable, "-c", MAIN, "serve", *map(str, arguments)],
        cwd=ROOT,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 2, done
    assert len(done.stderr.splitlines()) == 1, done.stderr
    return done.stderr


def test_settings_that_are_refused(data: Path, tmp_path: Path, tokens: Path) -> None:
    cert, key = certificate(tmp_path / "right", "127.0.0.1")
    assert "beyond this machine a server must have TLS and a token" in refused(data, "--bind", "0.0.0.0:0")
    some: list[dict[str, Any]] = [{}, {"token_file": str(tokens)}, {"tls_cert": str(cert), "tls_key": str(key)}]
    for settings in some:
        for bind in ("0.0.0.0:0", "[::]:0", "example.org:0"):
            with pytest.raises(ConfigError, match="beyond this machine a server must have TLS and a token"):
                ServeConfig(datasets={}, bind=bind, threads=1, **settings)
    cert, key = certificate(tmp_path / "hidden", "127.0.0.1", password=b"secret")
    assert "without a password" in refused(data, "--tls-cert", cert, "--tls-key", key)
    tokens.write_text("short\n")
    told = refused(data, "--token-file", tokens)
    assert "16 characters at least" in told
    assert "short" not in told


def test_a_file_of_no_certificates(data: Path, tmp_path: Path) -> None:
    (tmp_path / "ca.pem").write_text("nothing")
    with pytest.raises(ConfigError, match="tls_ca .* it must be a file of certificates, in PEM"):
        ShardLoader(data, servers=["https://127.0.0.1:1/speech"], tls_ca=tmp_path / "ca.pem", **PLAN)
