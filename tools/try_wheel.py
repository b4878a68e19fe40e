"""Packs and loads with the shardpipe that is installed, as one does who has only that: no extras, no sources.

python try_wheel.py
"""

from __future__ import annotations

import json
import math
import struct
import subprocess
import sys
import tempfile
import wave
from importlib.util import find_spec
from pathlib import Path

SAMPLES = 20
RATES = (8000, 16000)


def write_list(folder: Path) -> Path:
    """A data.list of tones of both rates."""
    lines = []
    for number in range(SAMPLES):
        rate = RATES[number % 2]
        tone = [round(8000 * math.sin(0.05 * number * i)) for i in range(rate // 4)]
        with wave.open(str(folder / f"{number}.wav"), "wb") as file:
            file.setnchannels(1)
            file.setsampwidth(2)
            file.setframerate(rate)
            file.writeframes(struct.pack(f"<{len(tone)}h", *tone))
        lines.append(json.dumps({"key": f"utt{number}", "wav": f"{number}.wav", "txt": "a tone"}) + "\n")
    (folder / "data.list").write_text("".join(lines))
    return folder / "data.list"


def main() -> None:
    """Exits with an error if anything is not as it should be."""
    import shardpipe
    from shardpipe import ShardLoader

    assert "site-packages" in shardpipe.__file__, f"these are the sources: {shardpipe.__file__}"
    assert not find_spec("torchaudio")
    assert not find_spec("tensorboard")
    pack, train = (str(Path(sys.executable).parent / name) for name in ("shardpipe", "shardpipe-train"))
    with tempfile.TemporaryDirectory() as name:
        data_list, data = write_list(Path(name)), Path(name) / "packed"
        subprocess.run([pack, "pack", data_list, "-o", data, "--shard-samples", "8"], check=True)
        subprocess.run([pack, "verify", data], check=True)
        loader = ShardLoader(str(data), batch_size=4, sample_rate=16000)
        batches = list(loader)
        assert sorted(key for batch in batches for key in batch.keys) == sorted(f"utt{n}" for n in range(SAMPLES))
        assert all(batch.audio.shape == (4, 4000) for batch in batches)
        resumed = ShardLoader(str(data), batch_size=4, sample_rate=16000)
        resumed.load_state_dict(batches[1].state)
        assert [list(batch.keys) for batch in resumed] == [list(batch.keys) for batch in batches[2:]]
        command = [train, "--data", str(data), "--out", f"{name}/run"]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 1, done.stderr
        assert "pip install 'shardpipe[train]'" in done.stderr, done.stderr
        assert len(done.stderr.splitlines()) == 1, done.stderr
    import torch

    print(f"the wheel packs, loads and resumes with torch {torch.__version__} alone")


if __name__ == "__main__":
    main()
