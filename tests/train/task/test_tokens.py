"""Characters as units."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shardpipe.errors import ConfigError
from shardpipe.train.task.tokens import SPACE, CharTokenizer

TEXTS = st.lists(st.text(max_size=12), max_size=6)


@given(TEXTS)
def test_units_depend_on_the_texts_alone_and_give_them_back(texts: list[str]) -> None:
    tokenizer = CharTokenizer.from_texts(texts)
    assert tokenizer.units == CharTokenizer.from_texts(reversed(texts)).units
    for text in texts:
        ids = tokenizer.encode(text)
        assert tokenizer.unknown not in ids
        assert 0 not in ids
        assert tokenizer.decode(ids) == " ".join(text.split()).replace(SPACE, " ")


def test_units_file_is_wenets(tmp_path: Path) -> None:
    tokenizer = CharTokenizer.from_texts(["b a", "é日"])
    tokenizer.save(tmp_path / "units.txt")
    assert (tmp_path / "units.txt").read_text().split("\n") == [
        "<blank> 0", "<unk> 1", "a 2", "b 3", "é 4", f"{SPACE} 5", "日 6", "",
    ]  # fmt: skip
    assert CharTokenizer.from_file(tmp_path / "units.txt").units == tokenizer.units


def test_an_unknown_character_is_unk_and_shows_as_one(tmp_path: Path) -> None:
    (tmp_path / "units.txt").write_text("<blank> 0\n<unk> 1\na 2\n<sos/eos> 3\n")
    tokenizer = CharTokenizer.from_file(tmp_path / "units.txt")
    assert tokenizer.encode("axa") == [2, 1, 2]
    assert tokenizer.decode([2, 1, 3, 2]) == "a\ufffda"


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("<blank> 0\na 2\n", "line 2"),
        ("<blank> 0\n<unk> 1\nab 2\n", "'ab', not one character"),
        ("<blank> 0\na 1\n", "<unk>"),
        ("<unk> 0\n<blank> 1\n", "<blank>"),
        ("<blank> 0\n<unk> 1\na 2\na 3\n", "distinct"),
        ("<blank> 0\n<unk>\n", "line 2"),
        ("", "<blank>"),
    ],
)
def test_a_wrong_units_file_is_named_with_its_line(tmp_path: Path, text: str, says: str) -> None:
    (tmp_path / "units.txt").write_text(text)
    with pytest.raises(ConfigError, match=says) as caught:
        CharTokenizer.from_file(tmp_path / "units.txt")
    assert "units.txt" in str(caught.value)
    with pytest.raises(ConfigError, match="cannot be read"):
        CharTokenizer.from_file(tmp_path / "none.txt")


def test_collapse_merges_repeats_then_drops_blanks() -> None:
    tokenizer = CharTokenizer.from_texts(["ab"])
    a, b = tokenizer.encode("ab")
    assert tokenizer.collapse([0, a, a, 0, a, b, b, 0]) == "aab"
    assert tokenizer.collapse([]) == ""
