"""Starts the processes of a training job on this machine and ends them together: torchrun without its seconds.

    python tests/launch.py N ARGUMENTS OF python

They find each other by the environment, as they would when Slurm's srun had started them.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time


def main(number: int, arguments: list[str]) -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": str(number)}
    ranks = [
        subprocess.Popen(
            [sys.executable, *arguments],
            env={**os.environ, **shared, "RANK": str(rank), "LOCAL_RANK": str(rank)},
        )
        for rank in range(number)
    ]
    for asked in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1):
        signal.signal(asked, lambda number, _: [rank.send_signal(number) for rank in ranks])
    while None in (codes := [rank.poll() for rank in ranks]):
        time.sleep(0.05)
        if failed := [code for code in codes if code]:
            time.sleep(5)
            for rank in ranks:
                rank.kill()
            return failed[0]
    return max(rank.returncode for rank in ranks)


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]), sys.argv[2:]))
