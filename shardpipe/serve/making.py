"""From a request to an answer, in one thread: rows, bytes, the batch, its body. Pure but for what it reads."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, TypeAlias

import msgspec

from shardpipe.audio import fits_int16
from shardpipe.errors import ShardError, ShardpipeError
from shardpipe.loading import (
    BatchRequest,
    Form,
    Maker,
    Payload,
    Place,
    PlaceFields,
    Refusal,
    SampleRow,
    Skipped,
    Wanted,
    Work,
    packed,
)
from shardpipe.serve.datasets import OpenDataset
from shardpipe.serve.room import Answer, Full, TooLarge

__all__ = ["Refused", "check_request", "made"]

_log = logging.getLogger("shardpipe.serve")

_NOWHERE = PlaceFields(epoch=0, consumed_samples=0, state={})
_ByDataset: TypeAlias = list[tuple[OpenDataset, list[int]]]


class Refused(Exception):
    """A request that gets no batch: the HTTP status, and what its client is told."""

    def __init__(self, status: int, refusal: Refusal) -> None:
        super().__init__(refusal.what)
        self.status = status
        self.refusal = refusal


def check_request(body: bytes, datasets: Mapping[str, OpenDataset]) -> BatchRequest:
    """The request of a body, for datasets and functions that are there. Raises Refused."""
    try:
        request = BatchRequest.parse(body)
    except ValueError as error:
        fix = "Use one version of shardpipe for trainers and servers."
        raise _refused(400, "request", f"the request is none ({error})", fix) from error
    for asked in request.datasets:
        dataset = datasets.get(asked.name)
        if dataset is None:
            raise _refused(404, "server", f"it has no dataset {asked.name!r}")
        if dataset.index.fingerprint != asked.fingerprint:
            raise _refused(409, "server", f"its {asked.name!r} is another dataset")
    main = datasets[request.datasets[0].name]
    functions = ("transform", request.transform, main.transforms), ("collate", request.collate, main.collates)
    for kind, name, there in functions:
        if name is not None and _function(name, there) is None:
            raise _refused(409, "server", f"it has no {kind} {name!r}")
    return request


def made(
    request: BatchRequest, digest: str, datasets: Mapping[str, OpenDataset], take: Callable[[int], None]
) -> Answer:
    """The answer. `take` is told the bytes that making it needs, before they are used; what it raises ends it. Raises
    Refused for what every server would have to refuse, and for what is wrong with this one.
    """
    main = datasets[request.datasets[0].name]
    try:
        found = _by_dataset(request, datasets)
        work = _work(request, found)
        maker = _maker(request, main)
        take(maker.size(work))
        payloads = _payloads(found, work.rows)
        narrow = _narrowed(maker, request, work.rows, payloads)
        batch, skipped = narrow(work, payloads)
        return Answer(_packed(batch, skipped, digest, request), main.name, len(work.rows))
    except (Refused, Full, TooLarge):
        raise
    except Exception as error:
        raise _as_refused(error, request) from error


def _packed(batch: Any, skipped: list[Skipped], digest: str, request: BatchRequest) -> list[bytes | memoryview]:
    try:
        return packed(batch, skipped, digest)
    except ValueError as error:
        function = request.collate or request.transform
        fix = "Have it give tensors, arrays, numbers, texts, and lists, tuples and dicts of them."
        raise _refused(422, "other", f"what {function!r} made cannot be sent: {error}", fix) from error


def _by_dataset(request: BatchRequest, datasets: Mapping[str, OpenDataset]) -> _ByDataset:
    """Which of the samples are of which dataset."""
    found: dict[int, list[int]] = {}
    for i, (number, _, _) in enumerate(request.samples):
        found.setdefault(number, []).append(i)
    return [(datasets[request.datasets[number].name], here) for number, here in found.items()]


def _work(request: BatchRequest, found: _ByDataset) -> Work:
    rows: dict[int, SampleRow] = {}
    for dataset, here in found:
        try:
            rows |= zip(here, dataset.rows(request.samples[i][2] for i in here))
        except ValueError as error:
            raise _refused(400, "request", str(error)) from error
    return Work(
        place=Place(**msgspec.structs.asdict(request.place or _NOWHERE)),
        end=0,
        delivered=len(rows),
        rows=[rows[i] for i in range(len(rows))],
        epochs=[epoch for _, epoch, _ in request.samples],
        ordinals=[ordinal for _, _, ordinal in request.samples],
        weights=[float(weight) for weight in request.weights],
    )


def _maker(request: BatchRequest, main: OpenDataset) -> Maker:
    transform = request.transform and _function(request.transform, main.transforms)
    collate = request.collate and _function(request.collate, main.collates)
    return Maker(
        reader=main.reader,
        seed=request.seed,
        transform=transform or None,
        collate=collate or None,
        form=Form(dtype=request.dtype, channels=request.channels, sample_rate=request.sample_rate),
        skip_errors=request.on_error == "skip",
        pads=False,
    )


def _payloads(found: _ByDataset, rows: list[SampleRow]) -> dict[int, Payload]:
    payloads: dict[int, Payload] = {}
    for dataset, here in found:
        payloads |= {here[i]: payload for i, payload in dataset.payloads([rows[i] for i in here]).items()}
    return payloads


def _narrowed(maker: Maker, request: BatchRequest, rows: list[SampleRow], payloads: Mapping[int, Payload]) -> Maker:
    """One that makes int16 where that loses nothing of the float32 that was asked for: half the bytes to send."""
    asked = request.dtype == "float32" and request.transform is None and request.collate is None
    fits = asked and all(
        (row.channels == 1 or request.channels != "mix")
        and request.sample_rate in (None, row.sample_rate)
        and (isinstance(payload := payloads[i], ShardError) or fits_int16(payload, row.codec))
        for i, row in enumerate(rows)
    )
    return replace(maker, form=replace(maker.form, dtype="int16")) if fits else maker


def _function(name: str, there: Mapping[str, Any]) -> Any:
    known = Wanted.named({name: function.reference for name, function in there.items()}, name)
    return None if known is None else there[known].call


def _as_refused(error: Exception, request: BatchRequest) -> Refused:
    """Every server would fail by what is wrong with a sample or a function; all else is this one's fault."""
    if (refusal := Refusal.of(error)) is not None:
        return Refused(422, refusal)
    functions = [name for name in (request.transform, request.collate) if name is not None]
    if functions and isinstance(error, ValueError) and str(error).startswith("after the transform"):
        return _refused(422, "value", str(error))
    _log.error("a batch could not be made", exc_info=error)
    if functions and not isinstance(error, MemoryError | OSError | ShardpipeError):
        what = f"{type(error).__name__} in {' or '.join(map(repr, functions))}"
        return _refused(422, "other", what, "The server's log has all of it.")
    return _refused(500, "server", f"it cannot make the batch ({type(error).__name__}): see its log")


def _refused(status: int, kind: Any, what: str, fix: str = "") -> Refused:
    return Refused(status, Refusal(kind=kind, what=what, fix=fix))
