#!/usr/bin/env python3
"""Gets some 2,700 recorded prompts in five languages from Debian's archive: 100 MB, two hours of real speech.

    python tools/get_speech.py OUT [--languages en es fr it ru]

downloads asterisk-core-sounds-XX-wav (the audio) and asterisk-core-sounds-XX (its transcript) with apt-get, unpacks
them without root, and writes OUT/data.list. A language lies in OUT/XX, renamed into place when it is whole: a run that
was stopped goes on where it was. OUT/left_out.jsonl names every file and line that is not in the list, and why.
"""

from __future__ import annotations

import argparse
import gzip
import json
import os
import re
import shutil
import subprocess
import sys
import wave
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

__all__ = ["Found", "GetError", "clean_text", "fetch", "main", "match", "parse_transcript"]

LANGUAGES = ("en", "es", "fr", "it", "ru")
PACKAGE = "asterisk-core-sounds-{}"

# Accented letters lost to '?' when the file was converted: "pu? essere", "la conferenza ? piena".
_DAMAGED = re.compile(r"\s\?\s|\w\?\s+[a-zß-ÿа-яё]")
# Tones whose transcript is a description without brackets, in Italian.
_TONES = {"beep", "beeperr"}
_NOTE = re.compile(r"\[[^]]*\]|\([^)]*\)|<[^>]*>")
_FIXES = (
    ("Unable to locate|No packages found|select candidate", "apt's lists are empty or old: run `sudo apt-get update`."),
    ("404", "apt's lists are older than the archive: run `sudo apt-get update`."),
    ("No space left|enough free space", "Make room on the disk, then run this again; whole languages are kept."),
    ("Failed to fetch|resolv|connect", "Check the network, then run this again; whole languages are kept."),
)


class GetError(Exception):
    """What went wrong and what to do about it."""


@dataclass(kw_only=True)
class Found:
    """What a language's package gave: lines for the list, and what was left out, each with its reason."""

    lines: list[dict[str, Any]] = field(default_factory=list)
    left_out: list[dict[str, Any]] = field(default_factory=list)

    def leave_out(self, reason: str, language: str, name: str, detail: str = "") -> None:
        self.left_out.append({"reason": reason, "lang": language, "name": name, "detail": detail})


def parse_transcript(text: str) -> tuple[dict[str, str], list[tuple[str, str, str]]]:
    """The prompts by name, and (reason, name or line number, line) of every line that is none.

    A line is `name: text`; `;` begins a comment. Where a name comes twice, the first one counts.
    """
    prompts: dict[str, str] = {}
    odd = []
    for number, line in enumerate(text.removeprefix("\ufeff").splitlines(), 1):
        if not line.strip() or line.startswith(";"):
            continue
        name, colon, words = line.partition(":")
        if not colon or not name.strip() or " " in name.strip():
            odd.append(("line is not 'name: text'", f"line {number}", line))
        elif name.strip() in prompts:
            odd.append(("second line of that name", name.strip(), line))
        else:
            prompts[name.strip()] = words.strip()
    return prompts, odd


def clean_text(name: str, words: str) -> tuple[str, str]:
    """The words that are spoken, and why the prompt cannot be used ("" where it can).

    Notes to the reader in brackets go; a prompt that is nothing else is a tone or a silence.
    """
    if not words:
        return "", "transcript is empty"
    if _DAMAGED.search(words):
        return "", "transcript has lost letters"
    spoken = " ".join(_NOTE.sub(" ", words).split())
    if name in _TONES or not any(c.isalnum() for c in spoken):
        return "", "not speech"
    return spoken, ""


def match(language: str, folder: Path, prompts: dict[str, str]) -> Found:
    """Joins the prompts with the WAV files under `folder`, by name; names that differ in case alone are the same."""
    found = Found()
    root = folder / "sounds"
    files = {path.relative_to(root).with_suffix("").as_posix(): path for path in sorted(root.rglob("*.wav"))}
    by_case = {name.lower(): name for name in files}
    taken = set()
    for written, words in prompts.items():
        name = written if written in files else by_case.get(written.lower(), "")
        if not name or name in taken:
            found.leave_out("transcript without audio", language, written, words)
            continue
        taken.add(name)
        text, reason = clean_text(name, words)
        if reason := reason or _audio_fault(files[name]):
            found.leave_out(reason, language, name, words)
            continue
        key = f"{language}-{re.sub(r'[^A-Za-z0-9_-]', '-', name)}"
        path = files[name].relative_to(folder.parent).as_posix()
        found.lines.append({"key": key, "wav": path, "txt": text, "lang": language})
    for name in sorted(set(files) - taken):
        found.leave_out("audio without transcript", language, name)
    return found


def fetch(language: str, out: Path) -> Path:
    """OUT/XX with `transcript.txt` and `sounds/`, downloaded unless it is there. Raises GetError."""
    folder = out / language
    if folder.is_dir():
        return folder
    work = out / f".{language}.part"
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir()
    try:
        _download_into(work, language)
        (work / "made").rename(folder)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    return folder


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, metavar="OUT", help="the folder to make or to complete")
    parser.add_argument("--languages", nargs="+", choices=LANGUAGES, default=LANGUAGES)
    options = parser.parse_args(arguments)
    try:
        _check_programs()
        options.out.mkdir(parents=True, exist_ok=True)
        found = Found()
        for language in options.languages:
            folder = fetch(language, options.out)
            prompts, odd = parse_transcript((folder / "transcript.txt").read_text(encoding="utf-8"))
            part = match(language, folder, prompts)
            for reason, name, detail in odd:
                part.leave_out(reason, language, name, detail)
            print(f"{language}: {len(part.lines)} prompts, {len(part.left_out)} left out", flush=True)
            found.lines += part.lines
            found.left_out += part.left_out
    except (GetError, OSError, UnicodeDecodeError) as error:
        print(error, file=sys.stderr)
        return 1
    _write_lines(options.out / "left_out.jsonl", found.left_out)
    _write_lines(options.out / "data.list", found.lines)
    _report(found, options.out)
    return 0


def _check_programs() -> None:
    missing = [program for program in ("apt-get", "dpkg-deb") if shutil.which(program) is None]
    if missing:
        raise GetError(
            f"{' and '.join(missing)} not found. The speech comes from Debian's archive: run this on Debian or Ubuntu, "
            "in a container of one if need be, and copy the folder."
        )


def _download_into(work: Path, language: str) -> None:
    packages = [PACKAGE.format(language), PACKAGE.format(language) + "-wav"]
    print(f"downloading {' and '.join(packages)}", flush=True)
    # As root apt would hand the download to a user that may not write here; otherwise the first option does nothing.
    _run(["apt-get", "-o", "APT::Sandbox::User=root", "-o", "Acquire::Retries=3", "download", *packages], work)
    for package in packages:
        archives = list(work.glob(f"{package}_*.deb"))
        if len(archives) != 1:
            raise GetError(f"apt-get ended well but left {len(archives)} files of {package}. Run this again.")
        _run(["dpkg-deb", "-x", archives[0].name, "unpacked"], work)
    doc = work / "unpacked/usr/share/doc" / packages[0] / f"core-sounds-{language}.txt.gz"
    voices = list((work / "unpacked/usr/share/asterisk/sounds").glob("*_*"))
    if not doc.is_file() or len(voices) != 1:
        raise GetError(
            f"The packages of {language!r} are laid out in another way than this tool knows: it looked for "
            f"{doc.relative_to(work / 'unpacked')} and one folder of sounds, and found {len(voices)} of these."
        )
    (work / "made").mkdir()
    (work / "made" / "transcript.txt").write_bytes(gzip.decompress(doc.read_bytes()))
    voices[0].rename(work / "made" / "sounds")


def _run(command: list[str], folder: Path) -> None:
    # Messages are told apart below by their English words.
    environment = {**os.environ, "LC_ALL": "C.UTF-8"}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, errors="replace")
    if done.returncode == 0:
        return
    said = "; ".join(line for line in done.stderr.splitlines() if line.startswith("E:")) or done.stderr.strip()
    fix = next((fix for pattern, fix in _FIXES if re.search(pattern, said)), "Run that command by hand to see more.")
    raise GetError(f"`{' '.join(command)}` failed: {said}\n{fix}")


def _audio_fault(path: Path) -> str:
    try:
        with wave.open(str(path)) as file:
            return "" if file.getnframes() else "audio is empty"
    except (wave.Error, EOFError):
        return "audio cannot be read"


def _write_lines(path: Path, rows: list[dict[str, Any]]) -> None:
    beside = path.with_name(f".{path.name}.part")
    beside.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    beside.replace(path)


def _report(found: Found, out: Path) -> None:
    print(f"{len(found.lines)} prompts in {out / 'data.list'}; left out (all named in {out / 'left_out.jsonl'}):")
    for reason, count in Counter(row["reason"] for row in found.left_out).most_common():
        print(f"{count:6d}  {reason}")


if __name__ == "__main__":
    sys.exit(main())
