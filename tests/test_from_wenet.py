"""What docs/from-wenet.md tells users of WeNet: its commands run, one after the other, on data as WeNet has them."""

from __future__ import annotations

import io
import json
import re
import shlex
import tarfile
import traceback
from collections import Counter
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import NamedTuple

import pytest
import typer.main
import yaml

from shardpipe.cli import app
from shardpipe.cli import main as shardpipe
from shardpipe.dataset import Index
from shardpipe.train import cli as train_cli
from tests.readers import read_as_wenet
from tests.speech import write_list
from tests.training import count, events, one_thread

PAGE = (Path(__file__).parents[1] / "docs" / "from-wenet.md").read_text(encoding="utf-8")
# A command that is too long for a line goes on in the next.
COMMANDS = re.findall(r"^    (shardpipe\S* .+)$", re.sub(r"\\\n +", "", PAGE), re.MULTILINE)
NUMBERS = range(len(COMMANDS))
# What the page says of WeNet's own programs.
OF_WENET = {"--data_type", "--num", "--val_best"}
SAMPLES = 30


class Outcome(NamedTuple):
    code: int
    said: str


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What a user of WeNet has: lists, a Kaldi folder, shards with their list, units."""
    path = tmp_path_factory.mktemp("wenet")
    write_list(path, SAMPLES, seconds=(0.8, 1.2))
    for seed, name in enumerate(("dev", "test"), start=1):
        lines = utterances(write_list(path / name, 4, seed=seed, seconds=(0.8, 1.2)))
        (path / f"{name}.list").write_text("".join(json.dumps(line) + "\n" for line in lines))
    lines = utterances(path / "data.list")
    kaldi = path / "kaldi"
    kaldi.mkdir()
    (kaldi / "wav.scp").write_text("".join(f"{line['key']} {line['wav']}\n" for line in lines))
    (kaldi / "text").write_text("".join(f"{line['key']} {line['txt']}\n" for line in lines))
    write_shards(path, lines)
    units = ["<blank>", "<unk>", *sorted(set("".join(line["txt"].replace(" ", "\u2581") for line in lines)))]
    (path / "units.txt").write_text("".join(f"{unit} {i}\n" for i, unit in enumerate([*units, "<sos/eos>"])))
    return path


def utterances(path: Path) -> list[dict[str, str]]:
    """The lines of a list, their audio by absolute paths, as WeNet opens it."""
    read = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    return [{"key": line["key"], "wav": str(path.parent / line["wav"]), "txt": line["txt"]} for line in read]


def write_shards(folder: Path, lines: list[dict[str, str]], each: int = 12) -> None:
    """Tars as WeNet's tools/make_shard_list.py writes them, the text first, and the list that names them."""
    (folder / "shards").mkdir()
    paths = []
    for number, first in enumerate(range(0, len(lines), each)):
        paths.append(folder / "shards" / f"shards_{number:09d}.tar")
        with tarfile.open(paths[-1], "w") as tar:
            for line in lines[first : first + each]:
                audio = Path(line["wav"])
                for ending, data in ((".txt", line["txt"].encode()), (audio.suffix, audio.read_bytes())):
                    info = tarfile.TarInfo(line["key"] + ending)
                    info.size = len(data)
                    tar.addfile(info, io.BytesIO(data))
    (folder / "shards.list").write_text("".join(f"{path}\n" for path in paths))


@pytest.fixture(scope="module")
def outcomes(folder: Path) -> list[Outcome]:
    """Of all commands, in the page's order: each supposes what those before it have made."""
    starts: Counter[str] = Counter()
    with pytest.MonkeyPatch.context() as patch, one_thread():
        patch.chdir(folder)
        return [run(adapted(shlex.split(command), starts), patch) for command in COMMANDS]


def adapted(words: list[str], starts: Counter[str]) -> list[str]:
    """A command made small: of flags that are given twice, the last one counts."""
    if words[:2] in (["shardpipe", "pack"], ["shardpipe", "index"]):
        return [*words, "--jobs", "1"]
    if words[0] != "shardpipe-train" or not words[1].startswith("--"):
        return words
    given = dict(zip(words[1::2], words[2::2]))
    out = given.get("--out") or str(Path(given["--config"]).parent)
    starts[out] += 1
    words = [*words, "--model", "tiny", "--device", "cpu", "--threads", "1"]
    if given.keys().isdisjoint({"--batch-size", "--batch-seconds", "--config"}):
        words += ["--batch-size", "2"]
    # An epoch a start, so that every start finds something to do.
    return [*words, "--epochs", str(starts[out])]


def run(words: list[str], patch: pytest.MonkeyPatch) -> Outcome:
    said = io.StringIO()
    code: object = None
    with redirect_stdout(said), redirect_stderr(said):
        try:
            if words[0] == "shardpipe-train":
                code = train_cli.main(words[1:])
            else:
                patch.setattr("sys.argv", words)
                shardpipe()
        except SystemExit as ended:
            code = ended.code
        except Exception:  # of this command's test, and of no other
            said.write(traceback.format_exc())
            code = -1
    return Outcome(code if isinstance(code, int) else 0 if code is None else 1, said.getvalue())


@pytest.mark.parametrize("number", NUMBERS, ids=lambda number: f"{number}-{COMMANDS[number]}")
def test_commands_run(outcomes: list[Outcome], number: int) -> None:
    assert outcomes[number].code == 0, f"{COMMANDS[number]}\n{outcomes[number].said}"


def test_all_that_the_page_shows_is_run() -> None:
    assert len(COMMANDS) == len(re.findall(r"^\s*(?:shardpipe|torchrun|python)", PAGE, re.MULTILINE)) >= 20
    assert set(re.findall(r"^```(\w*)$", PAGE, re.MULTILINE)) == {"python", ""}  # which tests/test_docs.py runs
    assert not [code for code in re.findall(r"`(shardpipe[^`]*)`", PAGE) if " " in code]


def test_flags_are_those_of_the_commands() -> None:
    named = set(re.findall(r"(?<![\w-])--[a-z][\w-]*", PAGE))
    assert len(named) > 30
    assert named - known() == OF_WENET


def known() -> set[str]:
    """Flags of all commands and programs."""
    commands = typer.main.get_command(app).commands.values()  # type: ignore[attr-defined]
    flags = {flag for command in commands for each in command.params for flag in (*each.opts, *each.secondary_opts)}
    for parser in (train_cli._parser(), *(make() for make in train_cli._TOOLS.values())):
        flags |= parser._option_string_actions.keys()
    return flags


@pytest.mark.parametrize("name", ["packed", "packed-kaldi"])
def test_wenet_reads_what_pack_writes(outcomes: list[Outcome], folder: Path, name: str) -> None:
    wanted = [(line["key"], line["txt"], Path(line["wav"]).read_bytes()) for line in utterances(folder / "data.list")]
    assert read_as_wenet(folder / name) == wanted
    for line in (folder / name / "shards.list").read_text().splitlines():
        assert Path(line).is_absolute()


def test_shards_of_wenet_hold_the_list(outcomes: list[Outcome], folder: Path) -> None:
    lines = utterances(folder / "data.list")
    wanted = [(line["key"], line["txt"]) for line in lines]
    assert texts_of(Index.load(str(folder / "indexed"))) == wanted
    # Those that WeNet names, where they were: nothing is copied.
    assert (folder / "indexed" / "shards.list").read_text() == (folder / "shards.list").read_text()


def texts_of(index: Index) -> list[tuple[str, str]]:
    rows = [index.rows(shard).select(["key", "text"]).to_pydict() for shard in range(len(index.counts))]
    return [pair for columns in rows for pair in zip(columns["key"], columns["text"])]


@pytest.mark.parametrize("name", ["one", "nights", "rate"])
def test_runs_go_on(outcomes: list[Outcome], folder: Path, name: str) -> None:
    starts = [command for command in COMMANDS if re.match(rf"shardpipe-train --.* runs/{name}\b", command)]
    resumed = [event["consumed_samples"] for event in events(folder / "runs" / name, "resume")]
    assert len(resumed) == len(starts) - 1 >= 1
    assert resumed == sorted(set(resumed))
    assert resumed[0] > 0


def test_units_are_wenets(outcomes: list[Outcome], folder: Path) -> None:
    assert (folder / "runs" / "one" / "units.txt").read_text() == (folder / "units.txt").read_text()


def test_nights_end_where_they_were_bid_to(outcomes: list[Outcome], folder: Path) -> None:
    (said,) = [outcome.said for command, outcome in zip(COMMANDS, outcomes) if "--max-sub-epochs" in command]
    assert re.search(r"shardpipe-train --config \S*runs/nights/config\.yaml", said)
    out = folder / "runs" / "nights"
    (first,) = [event["consumed_samples"] for event in events(out, "resume")]
    assert 0 < first < count(out) < SAMPLES


def test_new_rates_are_recorded(outcomes: list[Outcome], folder: Path) -> None:
    out = folder / "runs" / "rate"
    rates = {yaml.safe_load(path.read_text())["learning_rate"] for path in (out / "starts").glob("*.yaml")}
    assert rates == {1e-3, 5e-4}
    assert len(events(out, "changed")) >= 2
