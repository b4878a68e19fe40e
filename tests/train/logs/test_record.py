"""What a run writes down."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from shardpipe.train.logs.record import JsonLines, cut_back


def test_records_read_back_exactly_and_are_cut_back_to_a_count(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    log = JsonLines(path)
    for count in (4, 8, 8, 12):
        log.write({"event": "step", "consumed_samples": count, "loss": 0.1 + 0.2, "grad_norm": math.inf})
    log.write({"event": "valid", "consumed_samples": 12, "loss": 1.0})
    log.close()
    lines = path.read_text().splitlines()
    assert json.loads(lines[0]) == {"event": "step", "consumed_samples": 4, "loss": 0.1 + 0.2, "grad_norm": None}
    with path.open("a") as file:
        file.write('{"event": "step", "consumed_samples": 16, "lo')
    assert cut_back(path, 12) == 1
    assert path.read_text().splitlines() == lines
    assert cut_back(path, 12) == 0
    assert cut_back(path, 12, evaluated=False) == 1
    assert cut_back(path, 11) == 1
    assert path.read_text().splitlines() == lines[:3]
    assert cut_back(tmp_path / "none.jsonl", 0) == 0


def test_a_line_without_its_end_is_ended(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"consumed_samples": 4}\n{"consumed_samples": 8}')
    assert cut_back(path, 8) == 0
    log = JsonLines(path)
    log.write({"consumed_samples": 12})
    log.close()
    assert [json.loads(line)["consumed_samples"] for line in path.read_text().splitlines()] == [4, 8, 12]


@pytest.mark.parametrize(
    "line",
    ["[]", "3", "{}", '{"consumed_samples": "x"}', '{"consumed_samples": -1}', "[" * 100_000, '{"consumed_samples'],
)
def test_what_is_no_record_goes(tmp_path: Path, line: str) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text(f'{{"consumed_samples": 4}}\n{line}\n{{"consumed_samples": 8}}\n')
    assert cut_back(path, 8) == 1
    assert [json.loads(line)["consumed_samples"] for line in path.read_text().splitlines()] == [4, 8]
