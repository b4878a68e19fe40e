"""The scripts in tools/: what they make of good and bad material."""

from __future__ import annotations

import gzip
import importlib.util
import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import pytest

from shardpipe.audio import probe
from shardpipe.lists import read_list
from tests.speech import make_wav

TOOLS = Path(__file__).parents[1] / "tools"

TRANSCRIPT = """\ufeff; Core sounds

activated: Activated.
letters/at: at [@]
digits/1F: una
silence/1: (1 second of silence)
beep: un suono beep
full: La conferenza ? piena.
nothing:
a line without its colon
two words: no name has a space
activated: Activated again.
not-recorded: Nobody said this.
broken: Its audio is broken.
empty: Its audio is empty.
"""


def load(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, TOOLS / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    # Dataclasses look their module up by name.
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


get_speech = load("get_speech")
make_audio_clips = load("make_audio_clips")
make_demo_corpus = load("make_demo_corpus")


def make_package(root: Path, name: str, files: dict[str, bytes]) -> None:
    """A real Debian package of `files` in `root`."""
    tree = root / name
    control = f"Package: {name}\nVersion: 1\nArchitecture: all\nMaintainer: t <t@t>\nDescription: t\n".encode()
    for path, data in {"DEBIAN/control": control, **files}.items():
        (tree / path).parent.mkdir(parents=True, exist_ok=True)
        (tree / path).write_bytes(data)
    subprocess.run(["dpkg-deb", "-b", str(tree), str(root / f"{name}_1_all.deb")], check=True, capture_output=True)


@pytest.fixture
def archive(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of packages, and an `apt-get` that takes them from there or prints what `archive/fails` holds."""
    if shutil.which("dpkg-deb") is None:
        pytest.skip("needs dpkg-deb")
    root = tmp_path / "archive"
    sounds = "usr/share/asterisk/sounds/en_US_f_Allison/"
    wav = {"activated": 800, "letters/at": 800, "digits/1f": 800, "silence/1": 800, "beep": 800, "full": 800}
    wav |= {"nothing": 800, "nobody-wrote-this": 800, "empty": 0}
    files = {f"{sounds}{name}.wav": make_wav(frames, rate=8000) for name, frames in wav.items()}
    make_package(root, "asterisk-core-sounds-en-wav", files | {f"{sounds}broken.wav": b"RIFF"})
    doc = "usr/share/doc/asterisk-core-sounds-en/core-sounds-en.txt.gz"
    make_package(root, "asterisk-core-sounds-en", {doc: gzip.compress(TRANSCRIPT.encode())})
    apt_get = tmp_path / "bin" / "apt-get"
    apt_get.parent.mkdir()
    apt_get.write_text(
        f"#!/bin/sh\nset -e\nif [ -e {root}/fails ]; then cat {root}/fails >&2; exit 100; fi\n"
        f'for name; do for deb in {root}/"$name"_*.deb; do if [ -e "$deb" ]; then cp "$deb" .; fi; done; done\n'
    )
    apt_get.chmod(0o755)
    monkeypatch.setenv("PATH", f"{apt_get.parent}{os.pathsep}{os.environ['PATH']}")
    return root


def get(out: Path) -> int:
    return int(get_speech.main([str(out), "--languages", "en"]))


def rows(path: Path) -> list[dict[str, str]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


@pytest.mark.usefixtures("archive")
def test_speech_is_listed_and_the_rest_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "speech"
    assert get(out) == 0
    assert rows(out / "data.list") == [
        {"key": "en-activated", "wav": "en/sounds/activated.wav", "txt": "Activated.", "lang": "en"},
        {"key": "en-letters-at", "wav": "en/sounds/letters/at.wav", "txt": "at", "lang": "en"},
        {"key": "en-digits-1f", "wav": "en/sounds/digits/1f.wav", "txt": "una", "lang": "en"},
    ]
    left_out = {(row["reason"], row["name"]) for row in rows(out / "left_out.jsonl")}
    assert left_out == {
        ("not speech", "silence/1"),
        ("not speech", "beep"),
        ("transcript has lost letters", "full"),
        ("transcript is empty", "nothing"),
        ("line is not 'name: text'", "line 10"),
        ("line is not 'name: text'", "line 11"),
        ("second line of that name", "activated"),
        ("transcript without audio", "not-recorded"),
        ("audio cannot be read", "broken"),
        ("audio is empty", "empty"),
        ("audio without transcript", "nobody-wrote-this"),
    }
    assert all((out / row["wav"]).is_file() for row in rows(out / "data.list"))
    assert "2  not speech" in capsys.readouterr().out


def test_a_second_run_downloads_nothing(archive: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "speech"
    assert get(out) == 0
    first = (out / "data.list").read_bytes()
    (archive / "fails").write_text("E: no more\n")
    capsys.readouterr()
    assert get(out) == 0
    assert "downloading" not in capsys.readouterr().out
    assert (out / "data.list").read_bytes() == first


@pytest.mark.parametrize(
    ("said", "advice"),
    [
        ("E: Unable to locate package asterisk-core-sounds-en\n", "sudo apt-get update"),
        ("E: Failed to fetch http://x/y.deb  404  Not Found\n", "sudo apt-get update"),
        ("E: Failed to fetch http://x/y.deb  Temporary failure resolving 'x'\n", "Check the network"),
        ("E: You don't have enough free space in /x.\n", "Make room on the disk"),
    ],
)
def test_what_apt_says_becomes_advice_and_nothing_is_left(
    archive: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], said: str, advice: str
) -> None:
    (archive / "fails").write_text(said)
    out = tmp_path / "speech"
    assert get(out) == 1
    printed = capsys.readouterr().err
    assert said.strip() in printed
    assert advice in printed
    assert list(out.iterdir()) == []


def test_a_download_that_was_cut_is_never_taken_for_whole(
    archive: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    deb = archive / "asterisk-core-sounds-en-wav_1_all.deb"
    whole = deb.read_bytes()
    deb.write_bytes(whole[: len(whole) // 2])
    out = tmp_path / "speech"
    assert get(out) == 1
    assert "dpkg-deb" in capsys.readouterr().err
    assert list(out.iterdir()) == []
    deb.write_bytes(whole)
    assert get(out) == 0


def test_a_package_that_does_not_come_is_an_error(
    archive: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (archive / "asterisk-core-sounds-en_1_all.deb").unlink()
    assert get(tmp_path / "speech") == 1
    assert "left 0 files of asterisk-core-sounds-en." in capsys.readouterr().err


def test_without_apt_it_says_where_to_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert get(tmp_path / "speech") == 1
    assert "apt-get and dpkg-deb not found" in capsys.readouterr().err
    assert not (tmp_path / "speech").exists()


@pytest.mark.parametrize(
    ("words", "spoken"),
    [
        ("Hello.  World.", "Hello. World."),
        ("Leave a message. (simple tone plays)", "Leave a message."),
        ("[!] punto esclamativo", "punto esclamativo"),
        ("Which folder?", "Which folder?"),
        ("Login errato. Casella di posta? Prego.", "Login errato. Casella di posta? Prego."),
    ],
)
def test_text_keeps_what_is_spoken(words: str, spoken: str) -> None:
    assert get_speech.clean_text("name", words) == (spoken, "")


def test_the_embedded_corpus_is_what_its_script_says() -> None:
    corpus = Path(__file__).parents[1] / "shardpipe" / "demo" / "corpus"
    made = [(p.key, p.text, p.voice) for p in make_demo_corpus.prompts(456, seed=11)]
    listed = [
        (row["key"], row["txt"], row["speaker"]) for name in ("data.list", "valid.list") for row in rows(corpus / name)
    ]
    assert listed == made


def test_a_corpus_is_made_again_with_the_same_bytes(tmp_path: Path) -> None:
    if shutil.which("espeak-ng") is None:
        pytest.skip("needs espeak-ng")
    for out in ("first", "second"):
        assert make_demo_corpus.main(["--out", str(tmp_path / out), "--utterances", "6", "--valid", "1"]) == 0
    first = {path.relative_to(tmp_path / "first"): path.read_bytes() for path in (tmp_path / "first").rglob("*.*")}
    assert first == {p.relative_to(tmp_path / "second"): p.read_bytes() for p in (tmp_path / "second").rglob("*.*")}
    assert len(list(read_list(tmp_path / "first" / "valid.list"))) == 1
    for utterance in read_list(tmp_path / "first" / "data.list"):
        info = probe(Path(utterance.audio).read_bytes())
        assert (info.codec, info.sample_rate, info.channels) == ("opus", 16000, 1)


def test_every_voice_is_another() -> None:
    if shutil.which("espeak-ng") is None:
        pytest.skip("needs espeak-ng")
    prompt = next(make_demo_corpus.prompts(1, seed=0))
    spoken = {make_demo_corpus.speak(replace(prompt, voice=voice)) for voice in make_demo_corpus.VOICES}
    assert len(spoken) == len(make_demo_corpus.VOICES)


def test_without_espeak_it_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert make_demo_corpus.main(["--out", str(tmp_path / "out")]) == 1
    assert "apt install espeak-ng" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_the_clips_in_the_package_are_what_their_script_says() -> None:
    clips = Path(__file__).parents[1] / "shardpipe" / "audio" / "clips"
    assert {path.name for path in clips.iterdir()} == set(make_audio_clips.CLIPS)
    for name, made in make_audio_clips.CLIPS.items():
        info = probe((clips / name).read_bytes())
        assert (info.codec, info.sample_rate, info.channels) == (Path(name).suffix[1:], made.rate, made.channels)
        assert info.frames == made.rate // 5


def test_clips_are_made_again_with_the_same_bytes(tmp_path: Path) -> None:
    for out in ("first", "second"):
        assert make_audio_clips.main(["--out", str(tmp_path / out)]) == 0
    for name in make_audio_clips.CLIPS:
        assert (tmp_path / "first" / name).read_bytes() == (tmp_path / "second" / name).read_bytes()
