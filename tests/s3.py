"""An S3 server on the loopback for tests: moto's, in a process of its own."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import fsspec

__all__ = ["SECRETS", "options", "running_s3", "upload"]

SECRETS = ("test-access-key-id", "test-secret-access-key")

# The server says where it listens once it does; it ends with its standard input, that is with the tests.
_SERVER = """
import sys
from moto.server import ThreadedMotoServer
server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
server.start()
print(server.get_host_and_port()[1], flush=True)
sys.stdin.read()
server.stop()
"""


@contextmanager
def running_s3() -> Iterator[str]:
    """The endpoint's URL while the server runs."""
    with subprocess.Popen(
        [sys.executable, "-c", _SERVER],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    ) as server:
        assert server.stdin is not None
        assert server.stdout is not None
        try:
            yield f"http://127.0.0.1:{int(server.stdout.readline())}"
        finally:
            server.stdin.close()
            server.wait(10)


def options(endpoint: str) -> dict[str, Any]:
    """What s3fs needs to talk to it."""
    key, secret = SECRETS
    return {"endpoint_url": endpoint, "key": key, "secret": secret}


def upload(endpoint: str, url: str, folder: Path | dict[str, bytes]) -> None:
    """Puts files under a URL, in a bucket that is made if need be."""
    files = folder
    if isinstance(folder, Path):
        files = {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    fs = fsspec.filesystem("s3", use_listings_cache=False, **options(endpoint))
    fs.makedirs(url.removeprefix("s3://").partition("/")[0], exist_ok=True)
    for name, content in files.items():
        fs.pipe_file(f"{url}/{name}", content)
