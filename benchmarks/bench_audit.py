"""What does the key log cost a step and a disk, and what does it take to audit a run of 10^8 samples?

The logs of an epoch in an order of its own are written as eight processes in steps of eight batches would write
them, then audited in a process of its own: as they are, and with a line of theirs removed from the middle. Exits with 1
if a target is missed.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from reporting import Checks, table, write_results

from shardpipe.train.logs import KeyLog, key_logs

RANKS = 8
MEMORY = 2e9

REPORT = """\
{samples:,} samples in {lines:,} lines of {ranks} key logs, batches of {batch}.

{table}

## Checks

{checks}
"""


def write_logs(run: Path, samples: int, batch: int) -> float:
    """Those of one epoch; seconds that a line takes."""
    order = np.random.default_rng(0).permutation(samples)
    logs = [KeyLog(run, rank) for rank in range(RANKS)]
    logs[0].write(0, {"basis": {"dataset": "0" * 64, "num_samples": samples}})
    spent, lines = 0.0, 0
    for begin in range(0, samples, batch * RANKS):
        step = order[begin : begin + batch * RANKS]
        count = begin + len(step)
        batches = [step[at : at + batch].tolist() for at in range(0, len(step), batch)]
        began = time.perf_counter()
        for log, given in zip(logs, batches):
            log.write(count, {"epoch": 0, "samples": given})
        spent += time.perf_counter() - began
        lines += len(batches)
    for log in logs:
        log.close()
    event = {"event": "checkpoint", "consumed_samples": samples}
    (run / "metrics.jsonl").write_text(json.dumps(event) + "\n")
    return spent / lines


def audited(run: Path) -> tuple[int, float, int, str]:
    """The audit's exit code, seconds, largest resident memory in bytes, and last line."""
    began = time.perf_counter()
    command = [sys.executable, "-m", "shardpipe.train", "audit", str(run)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        said = process.stdout.read()
        _, status, used = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    return process.returncode, time.perf_counter() - began, used.ru_maxrss * 1024, said.splitlines()[-1]


def remove_a_line(path: Path) -> None:
    """From the middle."""
    size = path.stat().st_size
    with path.open("r+b") as file:
        file.seek(size // 2)
        file.readline()
        start = file.tell()
        file.readline()
        end = file.tell()
        while block := (file.seek(end), file.read(1 << 24))[1]:
            file.seek(start)
            file.write(block)
            start, end = start + len(block), end + len(block)
        file.truncate(start)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, default=10**8)
    parser.add_argument("--batch", type=int, default=16, help="samples of a line")
    parser.add_argument("--work", type=Path, help="a folder with room for 1.2 GB; by default a temporary one")
    options = parser.parse_args()
    checks = Checks()
    with tempfile.TemporaryDirectory(dir=options.work) as folder:
        run = Path(folder)
        a_line = write_logs(run, options.samples, options.batch)
        size = sum(path.stat().st_size for path in key_logs(run).values())
        code, seconds, memory, said = audited(run)
        checks.add(code == 0, f"as they are: {said}")
        checks.add(memory < MEMORY, f"{memory / 1e6:,.0f} MB resident at most (under {MEMORY / 1e6:,.0f})")
        remove_a_line(run / f"keys-rank{RANKS // 2}.jsonl")
        code, _, _, said = audited(run)
        checks.add(code == 1, f"a line removed: {said}")
    rows = [
        ["bytes a sample", f"{size / options.samples:.2f}"],
        ["GB in all", f"{size / 1e9:.2f}"],
        ["microseconds a batch, to write", f"{1e6 * a_line:.1f}"],
        ["seconds of the audit", f"{seconds:.0f}"],
        ["MB resident at most", f"{memory / 1e6:,.0f}"],
    ]
    lines = -(-options.samples // options.batch)
    text = REPORT.format(
        samples=options.samples,
        lines=lines,
        ranks=RANKS,
        batch=options.batch,
        table=table(["", "key log"], rows),
        checks=checks,
    )
    print(text)
    if options.samples == 10**8:
        print(write_results("audit", text, packages=("shardpipe", "numpy", "msgspec")).name)
    return 0 if checks.good else 1


if __name__ == "__main__":
    sys.exit(main())
