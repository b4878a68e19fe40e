"""Every line of a list is an utterance or an error that names it."""

from __future__ import annotations

import json
import os
import unicodedata
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from shardpipe.errors import ListError
from shardpipe.lists import MAX_KEY_BYTES, Utterance, check_key, fix_key, read_list
from tests.speech import write_list

GOOD = {"key": "a", "wav": "a.wav", "txt": "hello"}


def data_list(folder: Path, *lines: bytes | str | dict[str, Any]) -> Path:
    path = folder / "data.list"
    rows = [json.dumps(line) if isinstance(line, dict) else line for line in lines]
    path.write_bytes(b"".join((row.encode() if isinstance(row, str) else row) + b"\n" for row in rows))
    return path


def fault(path: Path, **options: Any) -> ListError:
    """The one error that reading raises."""
    with pytest.raises(ListError) as caught:
        list(read_list(path, **options))
    assert caught.value.fix
    return caught.value


# --- data.list ---------------------------------------------------------------------------------------------------


def test_a_list_as_others_write_it(tmp_path: Path) -> None:
    path = write_list(tmp_path, 4)
    utterances = list(read_list(path))
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert [u.key for u in utterances] == ["utt00000", "utt00001", "utt00002", "utt00003"]
    assert [u.text for u in utterances] == [line["txt"] for line in lines]
    assert [u.audio for u in utterances] == [str(tmp_path / line["wav"]) for line in lines]
    assert [u.where for u in utterances] == [f"{path}:{number}" for number in range(1, 5)]
    assert utterances[0].extras == {"speaker": "spk0", "lang": "en"}
    assert utterances[1].extras == {}


def test_every_field(tmp_path: Path) -> None:
    extras = {"speaker": "s1", "tags": ["x", {"y": None}], "snr": 3.5}
    path = data_list(tmp_path, GOOD | {"start": 1, "end": 2.5, "channel": 3} | extras)
    assert list(read_list(path)) == [
        Utterance(
            key="a",
            audio=str(tmp_path / "a.wav"),
            text="hello",
            start=1.0,
            channel=3,
            end=2.5,
            extras=extras,
            where=f"{path}:1",
        )
    ]


def test_marks_line_ends_blank_lines_and_scripts_do_not_matter(tmp_path: Path) -> None:
    line = json.dumps({"key": "發言-ä", "wav": "ö x.wav", "txt": " 你好\u2028 "}, ensure_ascii=False)
    path = data_list(tmp_path, b"\xef\xbb\xbf" + line.encode() + b"\r", b"", b"  \r", json.dumps(GOOD))
    first, second = read_list(path)
    assert (first.key, first.audio, first.text) == ("發言-ä", str(tmp_path / "ö x.wav"), " 你好\u2028 ")
    assert (second.key, second.where) == ("a", f"{path}:4")


def test_paths_resolve_beside_the_list_then_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lists, here = tmp_path / "lists", tmp_path / "here"
    for folder, names in [(lists, ("both.wav", "beside.wav")), (here, ("both.wav", "here.wav"))]:
        folder.mkdir()
        for name in names:
            (folder / name).touch()
    monkeypatch.chdir(here)
    names = ["both.wav", "beside.wav", "here.wav", "neither.wav", "/abs.wav", "s3://bucket/x.wav", "x" * 5000]
    data_list(lists, *({"key": f"k{i}", "wav": name, "txt": ""} for i, name in enumerate(names)))
    for path in (lists / "data.list", Path(os.path.relpath(lists)) / "data.list"):
        assert [os.path.normpath(u.audio) if "://" not in u.audio else u.audio for u in read_list(path)] == [
            str(lists / "both.wav"),
            str(lists / "beside.wav"),
            str(here / "here.wav"),
            str(lists / "neither.wav"),
            "/abs.wav",
            "s3://bucket/x.wav",
            str(lists / ("x" * 5000)),
        ]


@pytest.mark.parametrize(
    ("line", "what"),
    [
        ("{", "this is not JSON"),
        ("audio/a.wav hello", "this is not JSON"),
        ("[" * 100_000, "this is not JSON"),
        ('["a"]', "this is JSON, but no object"),
        ('{"key": "a", "wav": "a.wav", "txt": "", "snr": NaN}', "NaN is no JSON number"),
        (b'{"key": "a", "wav": "a.wav", "txt": "\xe9"}', "not UTF-8 (byte 38 of the line is 0xe9)"),
        ('{"key": "a", "wav": "a.wav", "txt": "\\ud800"}', "stands for no character"),
        ({"wav": "a.wav", "txt": ""}, '"key" is missing'),
        ({"key": "a", "txt": ""}, '"wav" is missing'),
        ({"key": "a", "wav": "a.wav"}, '"txt" is missing'),
        (GOOD | {"key": 7}, '"key" is 7'),
        (GOOD | {"wav": ["a.wav"]}, '"wav" is ["a.wav"]'),
        (GOOD | {"txt": None}, '"txt" is null'),
        (GOOD | {"wav": ""}, '"wav" is ""'),
        (GOOD | {"wav": "a\0b"}, '"wav" is "a\\u0000b"'),
        (GOOD | {"start": "1"}, 'the start is "1"'),
        (GOOD | {"start": True}, "the start is true"),
        (GOOD | {"start": -0.1}, "the start is -0.1"),
        (GOOD | {"end": 10**400}, "the end is 1000"),
        ('{"key": "a", "wav": "a.wav", "txt": "", "end": 1e999}', "1e999 is no JSON number"),
        ('{"key": "a", "wav": "a.wav", "txt": "", "snr": [-1e999]}', "-1e999 is no JSON number"),
        (GOOD | {"channel": "left"}, 'the field "channel" is "left"'),
        (GOOD | {"channel": -1}, 'the field "channel" is -1'),
        (GOOD | {"channel": True}, 'the field "channel" is true'),
        (GOOD | {"channel": 1.0}, 'the field "channel" is 1.0'),
        (GOOD | {"start": 2, "end": 2}, "it ends at 2 s and starts at 2 s"),
        (GOOD | {"start": 3, "end": 2}, "it ends at 2 s and starts at 3 s"),
        (GOOD | {"end": 0}, "it ends at 0 s and starts at 0 s"),
        (GOOD | {"key": "a.b"}, "the key 'a.b' holds a dot"),
        (GOOD | {"key": "a/b"}, "the key 'a/b' holds a slash"),
        (GOOD | {"key": "a\nb"}, "the key 'a\\nb' holds the control character '\\n'"),
        (GOOD | {"key": "a\x9f"}, "holds the control character '\\x9f'"),
        (GOOD | {"key": ""}, "the key '' is empty"),
        (GOOD | {"key": "ä" * 121}, "has 242 bytes, and 240 is the most"),
        (GOOD | {"key": "z", "wav": "b.wav"}, "the key 'z' is already that of {path}:1"),
    ],
)
def test_a_bad_line_is_named_and_can_be_left_out(tmp_path: Path, line: bytes | str | dict[str, Any], what: str) -> None:
    path = data_list(tmp_path, GOOD | {"key": "z"}, line, GOOD | {"key": "last"})
    error = fault(path)
    assert (error.file, error.line) == (str(path), 2)
    assert what.format(path=path) in error.what if "{path}" in what else what in error.what
    rejected: list[ListError] = []
    assert [u.key for u in read_list(path, on_reject=rejected.append)] == ["z", "last"]
    assert [str(e) for e in rejected] == [str(error)]


def test_utterances_before_a_bad_line_are_delivered(tmp_path: Path) -> None:
    utterances = read_list(data_list(tmp_path, GOOD, "{"))
    assert next(utterances).key == "a"
    with pytest.raises(ListError, match=r"data\.list:2"):
        next(utterances)


@pytest.mark.parametrize("content", [b"", b"\n\r\n", b"\xef\xbb\xbf"])
def test_an_empty_list(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "data.list"
    path.write_bytes(content)
    for on_reject in (None, lambda _: None):
        assert fault(path, on_reject=on_reject).what == "the list is empty"


def test_a_missing_list(tmp_path: Path) -> None:
    error = fault(tmp_path / "no.list", on_reject=lambda _: None)
    assert error.what == "there is no such file"
    assert (error.file, error.line) == (str(tmp_path / "no.list"), None)


# --- Keys --------------------------------------------------------------------------------------------------------


def test_keys_are_mapped_where_asked_for(tmp_path: Path) -> None:
    keys = ["a/b.c", "a%2Fb%2Ec", "ok", "100%", ""]
    path = data_list(tmp_path, *(GOOD | {"key": key} for key in keys))
    fixed = [u.key for u in read_list(path, fix_keys=True)]
    assert fixed == ["a%2Fb%2Ec", "a%252Fb%252Ec", "ok", "100%25", "%"]


def test_fixing_does_not_hide_a_duplicate(tmp_path: Path) -> None:
    path = data_list(tmp_path, GOOD | {"key": "a.b"}, GOOD | {"key": "a.b"})
    assert f"'a%2Eb' is already that of {path}:1" in fault(path, fix_keys=True).what


ANY_KEY = st.one_of(st.text(alphabet=st.characters()), st.text("%./~ä25E", max_size=8), st.text("a.", min_size=200))


@given(ANY_KEY)
@example("")
@example("\ud800")
@example("ä" * 120 + "b")
@example("." * 300)
def test_a_fixed_key_is_a_good_one(key: str) -> None:
    assert check_key(fix_key(key)) == ""
    assert "%" in key or check_key(key) or fix_key(key) == key


@given(st.lists(ANY_KEY, min_size=2, max_size=20, unique=True))
@example(["a.", "a%2E", "a%252E"])
@example(["", "%", "%25"])
@example(["x" * 241, "x" * 242])
def test_fixed_keys_stay_apart(keys: list[str]) -> None:
    assert len({fix_key(key) for key in keys}) == len(keys)


@given(st.text(min_size=1))
def test_a_good_key_names_a_file(key: str) -> None:
    if check_key(key) == "":
        name = f"{key}.flac"
        assert name.partition(".")[0] == name.rpartition(".")[0] == key
        assert os.path.basename(name) == name  # noqa: PTH119
        assert len(name.encode()) <= MAX_KEY_BYTES + 5
        assert not {"Cc", "Cs"} & {unicodedata.category(character) for character in name}


def test_fixed_keys_are_the_same_for_ever() -> None:
    """Datasets were packed under them."""
    assert fix_key("dir/utt.1\t") == "dir%2Futt%2E1%09"
    assert fix_key("x" * 300) == "x" * 206 + "%~0d4e2ca9e9cbced7a7a5380eb29e1a37"


# --- Kaldi -------------------------------------------------------------------------------------------------------


def kaldi(folder: Path, **files: str | bytes) -> Path:
    for name, content in files.items():
        path = folder / name.replace("wav_scp", "wav.scp")
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return folder


def test_kaldi_with_a_file_for_each_utterance(tmp_path: Path) -> None:
    kaldi(
        tmp_path,
        wav_scp="u1 my audio/a.wav\nu2\t/abs/b.flac \r\n",
        text="u2  你好　世界\nu1\n",
        utt2spk="u1 alice\nu2 bob\nunused carol\n",
    )
    first, second = read_list(tmp_path)
    assert first == Utterance(
        key="u1",
        audio=str(tmp_path / "my audio/a.wav"),
        text="",
        start=None,
        end=None,
        extras={"speaker": "alice"},
        where=f"{tmp_path / 'wav.scp'}:1",
    )
    assert (second.audio, second.text, second.extras) == ("/abs/b.flac", "你好　世界", {"speaker": "bob"})


def test_kaldi_with_segments(tmp_path: Path) -> None:
    kaldi(
        tmp_path,
        wav_scp="rec1 a.wav\nrec2 b.wav\nspare c.wav\n",
        text="u1 one\nu2 two\nu3 three\n",
        segments="u2 rec1 0.5 2.25\nu1 rec1 3 -1\nu3 rec2 0 1e1\n",
    )
    assert [(u.key, Path(u.audio).name, u.start, u.end, u.text, u.extras) for u in read_list(tmp_path)] == [
        ("u2", "a.wav", 0.5, 2.25, "two", {}),
        ("u1", "a.wav", 3.0, None, "one", {}),
        ("u3", "b.wav", 0.0, 10.0, "three", {}),
    ]


WAV = "u1 a.wav\nu2 b.wav\n"
TEXT = "u1 one\nu2 two\n"


@pytest.mark.parametrize(
    ("files", "place", "what", "left"),
    [
        ({"wav_scp": "u1 sox a.sph -t wav - |\nu2 b.wav\n"}, "wav.scp:1", "the output of a command", ["u2"]),
        ({"wav_scp": "u1 a.ark:17\nu2 b.wav\n"}, "wav.scp:1", "the audio is 'a.ark:17'", ["u2"]),
        ({"wav_scp": "u1\nu2 b.wav\n"}, "wav.scp:1", "the audio is ''", ["u2"]),
        ({"wav_scp": WAV + "u1 c.wav\n"}, "wav.scp:3", "'u1' is already on line 1", ["u1", "u2"]),
        ({"wav_scp": WAV + "u3 c.wav\n"}, "wav.scp:3", "'u3' is not in text", ["u1", "u2"]),
        ({"text": TEXT + "u3 three\n"}, "text:3", "'u3' has a text and no audio", ["u1", "u2"]),
        ({"text": TEXT + "u2 again\n"}, "text:3", "'u2' is already on line 2", ["u1", "u2"]),
        ({"text": TEXT.encode() + b"u3 \xff\n"}, "text:3", "not UTF-8", ["u1", "u2"]),
        ({"utt2spk": "u1 alice\n"}, "wav.scp:2", "'u2' is not in utt2spk", ["u1"]),
        ({"segments": "u1 u1 0 1\nu2 rec9 0 1\n"}, "segments:2", "no recording 'rec9' in wav.scp", ["u1"]),
        ({"segments": "u1 u1 0 1\nu2 u2 0\n"}, "segments:2", "a segment has 3 fields", ["u1"]),
        ({"segments": "u1 u1 0 1\nu2 u2 0 x\n"}, "segments:2", 'the end is "x"', ["u1"]),
        ({"segments": "u1 u1 0 1\nu2 u2 nan 1\n"}, "segments:2", "the start is NaN", ["u1"]),
        ({"segments": "u1 u1 0 1\nu2 u2 2 1\n"}, "segments:2", "it ends at 1 s and starts at 2 s", ["u1"]),
        ({"wav_scp": WAV + "u.3 c.wav\n", "text": TEXT + "u.3 x\n"}, "wav.scp:3", "holds a dot", ["u1", "u2"]),
    ],
)
def test_kaldi_faults_are_named_and_can_be_left_out(
    tmp_path: Path, files: dict[str, str | bytes], place: str, what: str, left: list[str]
) -> None:
    kaldi(tmp_path, **{"wav_scp": WAV, "text": TEXT} | files)
    error = fault(tmp_path)
    assert error.where == f"{tmp_path}/{place}"
    assert what in error.what
    rejected: list[ListError] = []
    assert [u.key for u in read_list(tmp_path, on_reject=rejected.append)] == left
    assert [str(e) for e in rejected] == [str(error)]


@pytest.mark.parametrize("missing", ["wav.scp", "text"])
def test_a_directory_that_is_not_kaldis(tmp_path: Path, missing: str) -> None:
    kaldi(tmp_path, wav_scp=WAV, text=TEXT)
    (tmp_path / missing).unlink()
    assert fault(tmp_path).what == f"this directory has no {missing}"


def test_kaldi_keys_are_fixed_after_the_tables_met(tmp_path: Path) -> None:
    kaldi(tmp_path, wav_scp="u.1 a.wav\n", text="u.1 one\n", utt2spk="u.1 s\n")
    (utterance,) = read_list(tmp_path, fix_keys=True)
    assert (utterance.key, utterance.text) == ("u%2E1", "one")
