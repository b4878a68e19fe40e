"""Batches that come from servers are those that would have been made here."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch

from shardpipe import ShardLoader
from shardpipe.errors import AudioError, ConfigError, ShardpipeError, StoreError
from shardpipe.loading import Maker, Work
from shardpipe.pack import PackOptions, pack
from shardpipe.store import LocalStore, SlowStore
from tests.serve import functions
from tests.serve.serving import Server, assert_same, batches_of, running
from tests.speech import make_bytes, pack_speech, write_list

FUNCTIONS = "tests.serve.functions"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("served")


@pytest.fixture(scope="module")
def data(folder: Path) -> Path:
    """All codecs."""
    return pack_speech(folder, 60, shard_samples=7, codecs=("wav", "flac", "mp3", "ogg", "opus"), seconds=(0.05, 0.4))


@pytest.fixture(scope="module")
def stereo(folder: Path) -> Path:
    """Two channels, several rates, 16 and 24 bits."""
    audio = folder / "stereo"
    audio.mkdir()
    lines = []
    for i in range(24):
        codec, subtype = (("wav", "PCM_16"), ("flac", "PCM_24"), ("wav", "FLOAT"), ("flac", "PCM_16"))[i % 4]
        rate = (16000, 8000, 22050)[i % 3]
        path = audio / f"{i}.{codec}"
        path.write_bytes(make_bytes(codec, 900 + 97 * i, rate=rate, channels=2, seed=i, subtype=subtype))
        lines.append(json.dumps({"key": f"s{i:02d}", "wav": str(path), "txt": f"text {i}"}))
    (audio / "data.list").write_text("\n".join(lines))
    pack(audio / "data.list", folder / "stereo-packed", options=PackOptions(shard_samples=5, relative=True))
    return folder / "stereo-packed"


@pytest.fixture(scope="module")
def config(folder: Path, data: Path, stereo: Path) -> Path:
    named = {name: f"{FUNCTIONS}:{name}" for name in functions.__all__}
    collates = {name: named.pop(name) for name in ("everything", "placed", "unsendable")}
    file = folder / "serve.yaml"
    file.write_text(
        json.dumps(
            {
                "datasets": {
                    "speech": {"data": "packed", "transforms": named, "collates": collates},
                    "stereo": {"data": str(stereo)},
                }
            }
        )
    )
    return file


@pytest.fixture(scope="module")
def servers(config: Path) -> Any:
    with running("--config", config) as one, running("--config", config) as other:
        yield one, other


def address(servers: tuple[Server, ...], name: str = "speech") -> list[str]:
    return [f"{server.url}/{name}" for server in servers]


@pytest.mark.parametrize("plan", [{"batch_size": 7}, {"batch_seconds": 1.5}], ids=["static", "seconds"])
@pytest.mark.parametrize("world", [1, 2, 3])
def test_the_same_batches_on_any_number_of_ranks(
    data: Path, servers: tuple[Server, ...], plan: dict[str, Any], world: int
) -> None:
    for rank in range(world):
        options = {**plan, "seed": 5, "rank": rank, "world_size": world, "rounds": 2}
        here = batches_of(data, **options)
        assert_same(batches_of(data, servers=address(servers), **options), here)
        assert_same(batches_of(data, servers=address(servers), local=True, **options), here)
        assert_same(batches_of(f"shardpipe+{servers[rank % 2].url}/speech", **options), here)


@pytest.mark.parametrize(
    "options",
    [
        {"dtype": "int16"},
        {"sample_rate": 8000},
        {"transform": functions.louder},
        {"transform": functions.louder, "dtype": "float32", "sample_rate": 22050},
        {"on_error": "skip"},
        {"min_seconds": 0.1, "max_seconds": 0.3},
        {"shuffle": False},
    ],
    ids=",".join,
)
def test_the_same_batches_however_they_are_to_be(
    data: Path, servers: tuple[Server, ...], options: dict[str, Any]
) -> None:
    here = batches_of(data, batch_seconds=2, **options)
    assert_same(batches_of(data, batch_seconds=2, servers=address(servers), **options), here)
    named = {name: getattr(value, "__name__", value) for name, value in options.items()}
    assert_same(batches_of(f"shardpipe+{servers[0].url}/speech", batch_seconds=2, **named), here)


@pytest.mark.parametrize("channels", [0, 1, "mix", "keep"])
def test_the_same_channels_at_the_same_rate(stereo: Path, servers: tuple[Server, ...], channels: Any) -> None:
    options: dict[str, Any] = {"batch_size": 5, "channels": channels, "sample_rate": 16000}
    here = batches_of(stereo, **options)
    assert_same(batches_of(stereo, servers=address(servers, "stereo"), **options), here)


@pytest.mark.parametrize("collate", [functions.everything, functions.placed])
def test_what_is_collated_comes_as_it_is(data: Path, servers: tuple[Server, ...], collate: Any) -> None:
    here = batches_of(data, batch_size=7, collate=collate)
    for given in (collate, collate.__name__):
        assert same_trees(batches_of(data, batch_size=7, collate=given, servers=address(servers)), here)


def same_trees(one: Any, other: Any) -> bool:
    if type(one) is not type(other):
        return False
    if isinstance(one, dict):
        return list(one) == list(other) and all(same_trees(one[key], other[key]) for key in one)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(same_trees, one, other))
    if isinstance(one, torch.Tensor):
        return one.dtype == other.dtype and torch.equal(one, other)
    if isinstance(one, float):
        return math.copysign(1, one) == math.copysign(1, other) and one == other
    return bool((one == other).all()) if hasattr(one, "all") else one == other


def test_a_run_moves_between_here_and_there(data: Path, servers: tuple[Server, ...]) -> None:
    """Stopped anywhere, it goes on elsewhere, by its state or by its count."""
    options: dict[str, Any] = {"batch_seconds": 1.5, "seed": 2, "transform": functions.louder}
    whole = batches_of(data, rounds=2, **options)
    ways: list[tuple[Any, dict[str, Any]]] = [
        (data, {}),
        (data, {"servers": address(servers)}),
        (data, {"servers": address(servers), "local": True}),
        (f"shardpipe+{servers[0].url}/speech", {}),
    ]
    got: list[Any] = []
    state = None
    for turn in range(2 * len(whole)):
        place, how = ways[turn % len(ways)]
        loader = ShardLoader(place, **options, **how)
        if state is not None:
            loader.load_state_dict(state)
        for _, batch in zip(range(3), loader):
            got.append(batch)
            state = batch.state
        if len(got) >= len(whole):
            break
    assert_same(got[: len(whole)], whole)


def test_this_process_goes_on_making_batches_after_loops_that_broke_off(
    data: Path, servers: tuple[Server, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What such a loop had dealt to it, and nobody made, is not its to make any more."""
    far = SlowStore(LocalStore(data), 0.002, parallel=16)  # where batches are begun long before they are made
    loader = ShardLoader(far, batch_size=1, threads=1, servers=address(servers), local=True)
    for epoch in range(4):
        loader.load_state_dict({**loader.state_dict(), "consumed_samples": 60 * epoch})
        for _ in loader:
            break
    made, make = [], Maker.__call__

    def counted(self: Maker, work: Work, fetched: Any) -> Any:
        made.append(work.place.consumed_samples)
        return make(self, work, fetched)

    monkeypatch.setattr(Maker, "__call__", counted)
    loader.load_state_dict({**loader.state_dict(), "consumed_samples": 60 * 9})
    assert sum(1 for _ in loader) == 60
    assert made


def test_errors_are_those_of_making_it_here(data: Path, servers: tuple[Server, ...], stereo: Path) -> None:
    with pytest.raises(ValueError, match="after the transform the audio of sample 'utt[0-9]+' is empty"):
        batches_of(data, batch_size=4, transform=functions.strange, servers=address(servers))
    with pytest.raises(ShardpipeError, match="KeyError in '.*broken'") as error:
        batches_of(data, batch_size=4, transform=functions.broken, servers=address(servers))
    assert "secret" not in str(error.value)
    with pytest.raises(ShardpipeError, match=r"unsendable.*shardpipe\.loading\.making\.batch\.Sample"):
        batches_of(data, batch_size=4, collate=functions.unsendable, servers=address(servers))
    with pytest.raises(ConfigError, match="channels is 'error', but 24 of its samples have 2 channels"):
        batches_of(stereo, batch_size=4, sample_rate=8000, servers=address(servers, "stereo"))
    with pytest.raises(ConfigError, match="sample_rate"):
        batches_of(stereo, batch_size=4, channels=0, servers=address(servers, "stereo"))


@pytest.mark.parametrize("transform", ["unknown", lambda sample, rng: sample], ids=["a name", "no name"])
def test_functions_that_servers_do_not_have(data: Path, servers: tuple[Server, ...], transform: Any) -> None:
    with pytest.raises(ShardpipeError, match="it has no transform 'unknown', but broken|lies in a module by a name"):
        batches_of(data, batch_size=4, transform=transform, servers=address(servers))


def test_another_dataset_under_the_name(data: Path, stereo: Path, servers: tuple[Server, ...]) -> None:
    """It is refused where all have it, and left alone where others do not."""
    with pytest.raises(StoreError, match="its 'speech' is another dataset"):
        batches_of(stereo, batch_size=4, channels=0, sample_rate=8000, servers=address(servers))
    with running(stereo, "--name", "speech") as wrong:
        mixed = [*address(servers), f"{wrong.url}/speech"]
        assert_same(batches_of(data, batch_size=7, servers=mixed), batches_of(data, batch_size=7))
        braces = f"shardpipe+http://127.0.0.1:{{{servers[0].url.split(':')[-1]},{wrong.url.split(':')[-1]}}}/speech"
        with pytest.raises(StoreError, match="several datasets by the name 'speech'"):
            ShardLoader(braces, batch_size=7)


def test_damaged_samples_are_told_or_skipped_as_here(tmp_path: Path) -> None:
    data = pack_speech(tmp_path, 20, shard_samples=20, codecs=("flac",))
    shard = data / "shard-000000.tar"
    whole = shard.read_bytes()
    place = whole.index(b"fLaC", len(whole) // 2) + 60
    shard.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
    with running(data, "--name", "speech") as server:
        options: dict[str, Any] = {"batch_size": 4, "servers": address((server,))}
        with pytest.raises(ShardpipeError) as there:
            batches_of(data, **options)
        with pytest.raises(ShardpipeError) as here:
            batches_of(data, batch_size=4)
        assert (type(there.value), str(there.value)) == (type(here.value), str(here.value))
        loaders = [ShardLoader(data, on_error="skip", **options), ShardLoader(data, batch_size=4, on_error="skip")]
        assert_same(*map(list, loaders))
        assert loaders[0].skipped == loaders[1].skipped
        assert len(loaders[0].skipped) == 1
    # Another server has the shard whole.
    sound = tmp_path / "sound"
    sound.mkdir()
    for path in data.rglob("*"):
        if path.is_file():
            (sound / path.relative_to(data)).parent.mkdir(exist_ok=True)
            (sound / path.relative_to(data)).write_bytes(whole if path == shard else path.read_bytes())
    with running(data, "--name", "speech") as torn, running(sound, "--name", "speech") as good:
        for skipping in ("skip", "raise"):
            loader = ShardLoader(data, batch_size=4, on_error=skipping, servers=address((torn, good)))
            assert_same(list(loader), batches_of(sound, batch_size=4))
            assert not loader.skipped


def test_undecodable_audio_is_told_as_here(tmp_path: Path) -> None:
    list_file = write_list(tmp_path, 6, codecs=("flac",))
    data = tmp_path / "packed"
    pack(list_file, data, options=PackOptions(relative=True))
    with running(data, "--name", "speech") as server:
        for options in ({"sample_rate": 8001}, {"sample_rate": 16000}):
            assert_same(
                batches_of(data, batch_size=2, servers=address((server,)), **options),
                batches_of(data, batch_size=2, **options),
            )
    assert issubclass(AudioError, ShardpipeError)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"servers": ["http://10.0.0.1:7070/speech"]}, "plain http is for servers on this machine"),
        ({"servers": []}, "it must name one"),
        ({"servers": ["https://a:7070/x", "https://a:7070/y"]}, "one dataset, by one name"),
        ({"servers": ["https://a:7070"]}, "it must be like"),
        ({"servers": ["ftp://a/b"]}, "it must be like"),
        ({"servers": ["https://user:secret@a/b"]}, "user name"),
        ({"servers": ["https://{a/b"]}, "braces"),
        ({"servers": [3]}, "it must be like"),
        ({"local": True}, "none is named"),
        ({"servers": ["https://a/b"], "workers": 2}, "local=True"),
        ({"servers": ["https://a/b"], "cache_dir": "x"}, "local=True"),
        ({"servers": ["https://a/b"], "local": True, "transform": "aug"}, "it must be a function"),
        ({"transform": "aug"}, "it must be a function"),
        ({"servers": ["https://a/b"], "digests": "some"}, '"same" or "any"'),
    ],
    ids=str,
)
def test_what_cannot_be(data: Path, options: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said) as error:
        ShardLoader(data, batch_size=4, **options)
    assert "secret" not in str(error.value)
