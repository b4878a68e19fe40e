"""Scripts that lack a guard are told so once, by one error."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.speech import pack_speech

PACK = "from shardpipe.pack import PackOptions, pack\npack('data.list', 'set', options=PackOptions(jobs=2))\n"
INDEX = "from shardpipe.pack import index_tars\nindex_tars('packed/*.tar', 'index', jobs=2)\n"
LOOP = "from shardpipe import ShardLoader\nfor batch in ShardLoader('packed', batch_size=2, workers=2):\n    pass\n"
AT_ONCE = """
import time
from shardpipe import ShardLoader
from shardpipe.loading.feeding import pace
pace._STRETCH, pace._BATCHES, pace._SHARE, pace._STANDING, pace._EVERY = 0, 4, -1, -1, 0
loader = ShardLoader('packed', batch_size=2, workers='auto', threads=2)
end = time.monotonic() + 60
samples = 0
while time.monotonic() < end and not told:
    for batch in loader:
        samples += len(batch.keys)
        time.sleep(0.01)
assert told, 'it never tried'
assert samples == loader.consumed_samples
"""


def run(folder: Path, script: str) -> subprocess.CompletedProcess[str]:
    path = folder / "script.py"
    path.write_text(script)
    return subprocess.run([sys.executable, str(path)], cwd=folder, capture_output=True, text=True, check=False)


def guarded(script: str) -> str:
    imports, rest = script.split("\n", 1)
    return f"{imports}\nif __name__ == '__main__':\n" + "".join(f"    {line}\n" for line in rest.splitlines())


@pytest.mark.parametrize("script", [PACK, INDEX, LOOP], ids=["pack", "index", "loop"])
def test_one_clear_error(tmp_path: Path, script: str) -> None:
    pack_speech(tmp_path, 8, shard_samples=2)
    done = run(tmp_path, script)
    assert done.returncode == 1
    # Python's own resource tracker may have a word to say after it.
    (error,) = [line for line in done.stderr.splitlines() if line.startswith("shardpipe.errors.")]
    assert "worker processes import the script that starts them" in error
    assert 'under `if __name__ == "__main__":`' in error
    assert "bootstrapping" not in done.stderr
    assert run(tmp_path, guarded(script)).returncode == 0


def test_a_loop_that_would_go_over_to_processes_stays_with_threads(tmp_path: Path) -> None:
    pack_speech(tmp_path, 8, shard_samples=2)
    listening = (
        "import logging\ntold = []\n"
        "logging.getLogger('shardpipe').addFilter(lambda record: told.append(record.getMessage()) or True)\n"
    )
    done = run(tmp_path, listening + AT_ONCE)
    assert done.returncode == 0, done.stderr
    (line,) = done.stderr.splitlines()
    assert line.startswith("threads go on making batches, for no worker processes can be had: worker processes import")


def test_a_process_that_others_start_may_loop(tmp_path: Path) -> None:
    pack_speech(tmp_path, 8, shard_samples=2)
    script = (
        "import multiprocessing\nfrom shardpipe import ShardLoader\n"
        "print(sum(len(batch.keys) for batch in ShardLoader('packed', batch_size=2)))\n"
        "if __name__ == '__main__':\n"
        "    process = multiprocessing.get_context('spawn').Process(target=print, args=('child',))\n"
        "    process.start()\n    process.join()\n"
    )
    assert run(tmp_path, script).stdout.split() == ["8", "8", "child"]
