"""How others read our shards: each reader gives [(key, text, audio bytes), ...] of a dataset's folder."""

from __future__ import annotations

import json
import struct
import tarfile
from pathlib import Path

__all__ = ["Sample", "read_as_wenet", "read_as_wids", "read_with_webdataset", "read_with_wids"]

Sample = tuple[str, str, bytes]
_AUDIO = ("wav", "flac", "mp3", "ogg", "opus")


def shards_of(folder: Path) -> list[Path]:
    return [folder / line for line in (folder / "shards.list").read_text().splitlines()]


def read_as_wenet(folder: Path) -> list[Sample]:
    """What wenet/dataset/datapipes.py, `tar_file_and_group`, does: a stream, names cut at the last dot."""
    samples: list[Sample] = []
    for path in shards_of(folder):
        with open(path, "rb") as file, tarfile.open(fileobj=file, mode="r|*") as stream:
            before, example = None, {}
            for info in stream:
                at = info.name.rfind(".")
                assert at > 0
                prefix, postfix = info.name[:at], info.name[at + 1 :]
                if before is not None and prefix != before:
                    samples.append((before, example["txt"], example["wav"]))
                    example = {}
                data = stream.extractfile(info).read()
                if postfix == "txt":
                    example["txt"] = data.decode("utf8").strip()
                elif postfix in ("flac", "mp3", "m4a", "ogg", "opus", "wav", "wma"):
                    example["wav"] = data
                before = prefix
            if before is not None:
                samples.append((before, example["txt"], example["wav"]))
    return samples


def read_with_webdataset(folder: Path) -> list[Sample]:
    import webdataset

    urls = [str(path) for path in shards_of(folder)]
    return [
        (sample["__key__"], sample["txt"].decode(), next(sample[codec] for codec in _AUDIO if codec in sample))
        for sample in webdataset.WebDataset(urls, shardshuffle=False)
    ]


def read_as_wids(folder: Path) -> list[Sample]:
    """What wids_mmtar.py does: plain ustar fields, no prefix, no extended headers, names cut at the first dot."""
    manifest = json.loads((folder / "shardindex.json").read_bytes())
    assert manifest["__kind__"] == "wids-shard-index-v1"
    assert manifest["wids_version"] == 1
    samples: list[Sample] = []
    for shard in manifest["shardlist"]:
        data = (folder / shard["url"]).read_bytes()
        assert len(data) == shard["filesize"]
        groups: dict[str, dict[str, bytes]] = {}
        at = 0
        while at < len(data):
            name, size, kind = struct.unpack_from("100s24x12s20xc", data, at)
            if not size.strip(b"\0"):
                break
            length = int(size[:-1], 8)
            if kind in (b"0", b"\0"):
                key, _, extension = name.decode().rstrip("\0").partition(".")
                groups.setdefault(key, {})[extension] = data[at + 512 : at + 512 + length]
            at += 512 + -(-length // 512) * 512
        assert len(groups) == shard["nsamples"]
        samples += [
            (key, found["txt"].decode(), next(found[codec] for codec in _AUDIO if codec in found))
            for key, found in groups.items()
        ]
    return samples


def read_with_wids(folder: Path, cache: Path) -> list[Sample]:
    import wids

    cache.mkdir()
    dataset = wids.ShardListDataset(str(folder / "shardindex.json"), cache_dir=str(cache), transformations=[])
    found = [dataset[i] for i in range(len(dataset))]
    return [
        (s["__key__"], s[".txt"].read().decode(), next(s[f".{codec}"] for codec in _AUDIO if f".{codec}" in s).read())
        for s in found
    ]
