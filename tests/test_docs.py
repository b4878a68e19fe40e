"""What the README shows must run, and what the docs point at must be there."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import fsspec
import pytest

from tests.s3 import SECRETS
from tests.speech import write_list

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").rglob("*.md"))]
SNIPPETS = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
COMMANDS = [line.split("#")[0].strip() for line in README.splitlines() if line.startswith("    shardpipe ")]


@pytest.fixture(scope="module")
def bucket(s3_endpoint: str) -> Iterator[None]:
    """What it takes to get to s3://bucket, in the environment."""
    key, secret = SECRETS
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("AWS_ENDPOINT_URL", s3_endpoint)
        environment.setenv("AWS_ACCESS_KEY_ID", key)
        environment.setenv("AWS_SECRET_ACCESS_KEY", secret)
        environment.setenv("AWS_DEFAULT_REGION", "us-east-1")
        fsspec.filesystem("s3").mkdir("bucket")
        yield


@pytest.fixture(scope="module")
def folder(bucket: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder as the README supposes it: a list, and old shards, which lie in a bucket as well."""
    path = tmp_path_factory.mktemp("readme")
    write_list(path, 30)
    run("shardpipe pack data.list -o packed", path)
    shutil.copytree(path / "packed", path / "old")
    run("shardpipe pack data.list -o s3://bucket/set", path)
    run("shardpipe pack data.list -o s3://bucket/old --shard-samples 3", path)
    return path


def run(command: str, folder: Path) -> None:
    name, *arguments = shlex.split(command)
    assert name == "shardpipe"
    code = "from shardpipe.cli import main; main()"
    environment = os.environ | {"HOME": str(folder)}  # where staging folders go
    subprocess.run(
        [sys.executable, "-c", code, *arguments], cwd=folder, env=environment, check=True, capture_output=True
    )


@pytest.mark.parametrize("number", range(len(SNIPPETS)))
def test_snippets_run(folder: Path, monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    monkeypatch.chdir(folder)
    names: dict[str, object] = {}
    exec(compile(SNIPPETS[number], f"README snippet {number}", "exec"), names)


def test_there_are_snippets_and_commands() -> None:
    assert len(SNIPPETS) >= 2
    assert {shlex.split(command)[1] for command in COMMANDS} >= {
        "pack",
        "index",
        "verify",
        "info",
        "at",
        "where",
        "plan",
        "doctor",
    }


def test_commands_run(folder: Path) -> None:
    (folder / "packed").rename(folder / "packed-before")
    for command in COMMANDS:
        at_hand = command.replace("KEY", "utt00003").replace("12345", "12")
        try:
            run(at_hand, folder)
        except subprocess.CalledProcessError as error:
            pytest.fail(f"{command}\n{error.stderr.decode()}")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_point_at_something(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", page.read_text(encoding="utf-8")):
        assert (page.parent / target).exists(), f"{page.name} points at {target}"
