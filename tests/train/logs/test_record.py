"""What a run writes down."""

from __future__ import annotations

import json
import math
from pathlib import Path

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
