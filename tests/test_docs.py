"""What the README shows must run, and what the docs point at must be there."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from inspect import signature
from pathlib import Path

import fsspec
import pytest

from shardpipe.cli.serving import serve
from tests.s3 import SECRETS
from tests.serve.serving import running
from tests.speech import write_list

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").rglob("*.md"))]
SNIPPETS = [code for page in PAGES for code in re.findall(r"```python\n(.*?)```", page.read_text(), re.DOTALL)]
(SERVE_YAML,) = re.findall(r"```yaml\n(.*?)```", (ROOT / "docs" / "service.md").read_text(), re.DOTALL)
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
        # Not for the first time where another test ran between two of this module's, on the same worker.
        fsspec.filesystem("s3").makedirs("bucket", exist_ok=True)
        yield


@pytest.fixture(scope="module")
def folder(bucket: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder as the README supposes it: a list, and old shards, which lie in a bucket as well."""
    path = tmp_path_factory.mktemp("readme")
    write_list(path, 30)
    run("shardpipe pack data.list -o packed", path)
    for name in ("old", "valid"):
        shutil.copytree(path / "packed", path / name)
    run("shardpipe pack data.list -o s3://bucket/set", path)
    run("shardpipe pack data.list -o s3://bucket/old --shard-samples 3", path)
    return path


@pytest.fixture(scope="module")
def served(folder: Path) -> Iterator[dict[str, str]]:
    """Servers as docs/service.md has them, and what pages call by other names: addresses, the module of functions."""
    functions = {"mypkg.augment": "tests.serve.functions"}
    (folder / "serve.yaml").write_text(replaced(SERVE_YAML, functions))
    (folder / "token").write_text("0123456789abcdef" * 4)
    names = "subjectAltName=DNS:localhost,IP:127.0.0.1"
    openssl = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=shardpipe"]
    made = [*openssl, "-addext", names, "-keyout", "key.pem", "-out", "cert.pem"]
    subprocess.run(made, cwd=folder, check=True, capture_output=True)
    secured = "--tls-cert", folder / "cert.pem", "--tls-key", folder / "key.pem", "--token-file", folder / "token"
    with ExitStack() as stack:
        ports = []
        for arguments in (
            *[("--config", folder / "serve.yaml", *secured)] * 2,
            (folder / "packed", "--name", "speech"),
        ):
            server = stack.enter_context(running(*arguments))
            ports.append(server.url.rpartition(":")[2])
        yield functions | {
            "https://{a,b}:7070": f"https://127.0.0.1:{{{ports[0]},{ports[1]}}}",
            "https://a:7070": f"https://127.0.0.1:{ports[0]}",
            "https://b:7070": f"https://127.0.0.1:{ports[1]}",
            "http://127.0.0.1:7070": f"http://127.0.0.1:{ports[2]}",
        }


def replaced(text: str, others: dict[str, str]) -> str:
    for name, other in others.items():
        text = text.replace(name, other)
    return text


def run(command: str, folder: Path) -> None:
    name, *arguments = shlex.split(command)
    assert name == "shardpipe"
    run_python(["-c", "from shardpipe.cli import main; main()", *arguments], folder)


def run_python(arguments: list[str], folder: Path) -> None:
    environment = os.environ | {"HOME": str(folder), "PYTHONPATH": str(ROOT)}  # HOME is where staging folders go
    done = subprocess.run(
        [sys.executable, *arguments], cwd=folder, env=environment, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, f"{arguments}\n{done.stderr}"


# What snippets of loops suppose, as the text around them does.
_SUPPOSED = """
import sys

import torch

sys.path.insert(0, {examples!r})
from accelerate import Accelerator
from ctc import CTC, collate
from torch import nn
from transformers import Trainer, TrainingArguments

import lightning
from shardpipe import ShardLoader


class Model(lightning.LightningModule):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(1, 1)

    def training_step(self, batch, batch_idx):
        return self.layer(batch.audio[:, :1]).mean()

    def validation_step(self, batch, batch_idx, dataloader_idx=0):
        pass

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


class Sums(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(1, 1)

    def forward(self, audio):
        return self.layer(audio.sum(1, keepdim=True))


code = {code!r}
model = Model() if "lightning" in code else CTC() if "transformers" in code else Sums()
parallel, optimizer, saved = model, torch.optim.SGD(model.parameters(), lr=0.1), None
if "arguments" in code:
    arguments = TrainingArguments("hf", max_steps=2, use_cpu=True, report_to="none")
else:
    accelerator = Accelerator()
exec(compile(code, "snippet", "exec"))
"""


@pytest.mark.parametrize("number", range(len(SNIPPETS)))
def test_snippets_run(folder: Path, served: dict[str, str], monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    code = replaced(SNIPPETS[number], served)
    if any(name in code for name in ("lightning", "transformers", "accelerat", "backward")):
        script = _SUPPOSED.format(code=code, examples=str(ROOT / "examples"))
        run_python(["-W", "ignore", "-c", script], folder)
        return
    monkeypatch.chdir(folder)
    exec(compile(code, f"snippet {number}", "exec"), {})


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
        "serve",
        "top",
    }


def test_commands_run(folder: Path, served: dict[str, str]) -> None:
    (folder / "packed").rename(folder / "packed-before")
    for command in COMMANDS:
        at_hand = command.replace("KEY", "utt00003").replace("12345", "12")
        if command.startswith("shardpipe serve ") and "--check" not in command:
            at_hand += " --check"  # it would serve until it is ended
        run(replaced(at_hand, served), folder)


def test_the_unit_gives_options_that_serve_has() -> None:
    unit = (ROOT / "deploy" / "shardpipe-serve.service").read_text()
    given = re.findall(r"--([a-z-]+)", unit.partition("ExecStart=")[2].partition("\n#")[0])
    assert {"config", "token-file"} <= set(given) <= {name.replace("_", "-") for name in signature(serve).parameters}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_point_at_something(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", page.read_text(encoding="utf-8")):
        assert (page.parent / target).exists(), f"{page.name} points at {target}"
