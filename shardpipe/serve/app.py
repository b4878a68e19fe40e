"""The server's HTTP: what it answers to whom, and that nothing it says tells more than it should."""

from __future__ import annotations

import asyncio
import hmac
import logging
import re
from collections.abc import Awaitable, Callable, Iterable, Mapping
from contextlib import nullcontext

import msgspec
from aiohttp import web

from shardpipe import __version__
from shardpipe.audio import digests
from shardpipe.errors import ShardpipeError
from shardpipe.loading import FORMAT, About, Refusal, content_digest
from shardpipe.serve.connections import Connections
from shardpipe.serve.datasets import OpenDataset
from shardpipe.serve.jobs import Jobs
from shardpipe.serve.making import Refused
from shardpipe.serve.metrics import Metrics
from shardpipe.serve.room import Full, TooLarge

__all__ = ["Service"]

_log = logging.getLogger("shardpipe.serve")

_BODY_MAX = 4 << 20
_BODIES = 32
"""That are read at once, beside small ones: who sends none slowly waits for nobody who does."""
_BODY_SMALL = 1 << 16
_BODY_SECONDS = 10.0
_CHUNK = 1 << 20
_CHUNK_SECONDS = 20.0
"""In which a client must have taken so much."""
_RANGE_MAX = 1 << 26
_RANGE = re.compile(r"bytes=([0-9]{1,18})-([0-9]{0,18})")
_OPEN = ("/healthz", "/readyz")

_Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class Service:
    """Answers requests about datasets, for clients that show one of `tokens`, or any if there are none."""

    def __init__(self, datasets: Mapping[str, OpenDataset], jobs: Jobs, metrics: Metrics, tokens: list[str]) -> None:
        self.tokens = tokens
        self.draining = False
        self.under_way = 0
        """Requests that are being answered."""
        self.connections: Connections | None = None
        self._datasets = datasets
        self._jobs = jobs
        self._metrics = metrics
        self._bodies = asyncio.Semaphore(_BODIES)
        about = About(
            format=FORMAT,
            version=__version__,
            digests=digests(),
            datasets={name: dataset.about() for name, dataset in datasets.items()},
        )
        self._about = msgspec.json.encode(about)

    def app(self) -> web.Application:
        @web.middleware
        async def guard(request: web.Request, handler: _Handler) -> web.StreamResponse:
            return await self._guard(request, handler)

        app = web.Application(client_max_size=_BODY_MAX, middlewares=[guard])
        app.on_response_prepare.append(_nameless)
        for method, path, handler in (
            ("GET", "/healthz", self._health),
            ("HEAD", "/healthz", self._health),
            ("GET", "/readyz", self._ready),
            ("HEAD", "/readyz", self._ready),
            ("GET", "/metrics", self._measured),
            ("GET", "/about", self._tell),
            ("GET", "/index/{name}/{file:.+}", self._index),
            ("POST", "/batch", self._batch),
            ("*", "/{all:.*}", self._nothing),
        ):
            app.router.add_route(method, path, handler, expect_handler=self._expected)
        return app

    async def _expected(self, request: web.Request) -> None:
        """This comes before the guard."""
        if request.headers["Expect"].lower() == "100-continue" and self._may(request):
            await request.writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")

    async def _guard(self, request: web.Request, handler: _Handler) -> web.StreamResponse:
        """Nobody without a token gets further; and whatever goes wrong is told in our own words."""
        assert self.connections is not None
        self.connections.begin(request)
        self.under_way += 1
        try:
            if request.path not in _OPEN and not self._may(request):
                response: web.StreamResponse = web.Response(status=401, headers={"WWW-Authenticate": "Bearer"})
            else:
                response = await self._answered(request, handler)
            if response.status >= 400 and request.path not in _OPEN:
                self._metrics.refusals.labels(str(response.status)).inc()
            return response
        finally:
            self.under_way -= 1
            self.connections.end(request)

    async def _answered(self, request: web.Request, handler: _Handler) -> web.StreamResponse:
        try:
            return await handler(request)
        except Refused as refused:
            return _refusal(refused.status, refused.refusal)
        except Full:
            refusal = Refusal(kind="server", what="it is busy")
            return _refusal(429, refusal, headers={"Retry-After": "1"})
        except TooLarge as error:
            what = f"a batch takes {error.size:,} bytes to make, and all that it may use is {error.limit:,}"
            fix = "Take smaller batches, or give the server more --memory."
            return _refusal(413, Refusal(kind="server", what=what, fix=fix))
        except ShardpipeError as error:
            _log.error("%s", error)
            return _refusal(500, Refusal(kind="server", what="it cannot read its data: see its log"))
        except web.HTTPException as error:
            return web.Response(status=error.status)

    def _may(self, request: web.Request) -> bool:
        if not self.tokens:
            return True
        scheme, _, shown = request.headers.get("Authorization", "").partition(" ")
        given = shown.strip().encode("utf-8", "surrogateescape")
        # All are compared, so that time does not tell which one it was, nor how much of it.
        fits = [hmac.compare_digest(given, token.encode()) for token in self.tokens]
        return any(fits) and scheme.lower() == "bearer"

    async def _nothing(self, _: web.Request) -> web.Response:
        return web.Response(status=404)

    async def _health(self, _: web.Request) -> web.Response:
        return web.Response()

    async def _ready(self, _: web.Request) -> web.Response:
        return web.Response(status=503 if self.draining else 200)

    async def _measured(self, _: web.Request) -> web.Response:
        assert self.connections is not None
        self._metrics.connections.set(len(self.connections))
        return web.Response(body=self._metrics.text(), headers={"Content-Type": "text/plain; version=0.0.4"})

    async def _tell(self, _: web.Request) -> web.Response:
        if self.draining:
            return _refusal(503, Refusal(kind="server", what="it is about to end"))
        return web.Response(body=self._about, content_type="application/json")

    async def _index(self, request: web.Request) -> web.StreamResponse:
        """A file of a dataset's index, or a range of it."""
        dataset, file = self._datasets.get(request.match_info["name"]), request.match_info["file"]
        if dataset is None or (stat := await asyncio.to_thread(dataset.stat, file)) is None:
            return web.Response(status=404)
        first, last = 0, stat.size - 1
        if (wanted := request.headers.get("Range")) is not None:
            match = _RANGE.fullmatch(wanted)
            if match is None or int(match[1]) >= stat.size:
                return web.Response(status=416)
            first, last = int(match[1]), min(int(match[2] or last), last)
        if wanted is not None and not first <= last < first + _RANGE_MAX:
            return web.Response(status=416)
        with self._jobs.room(last - first + 1):
            data = await asyncio.to_thread(dataset.read, file, first, last - first + 1)
            digest = await asyncio.to_thread(content_digest, data)
            headers = {"ETag": f'"{stat.version}"', "Content-Digest": digest}
            if wanted is not None:
                headers["Content-Range"] = f"bytes {first}-{last}/{stat.size}"
            response = web.StreamResponse(status=200 if wanted is None else 206, headers=headers)
            await self._sent(request, response, [data], len(data))
            return response

    async def _batch(self, request: web.Request) -> web.StreamResponse:
        if self.draining:
            return _refusal(503, Refusal(kind="server", what="it is about to end"))
        try:
            async with self._bodies if (request.content_length or _BODY_MAX) > _BODY_SMALL else nullcontext():
                async with asyncio.timeout(_BODY_SECONDS):
                    body = await request.read()
        except TimeoutError:
            return web.Response(status=408)
        # The request keeps its body as long as it lives.
        with self._jobs.room(len(body)):
            async with self._jobs.answer(body) as answer:
                response = web.StreamResponse(headers={"Content-Type": "application/octet-stream"})
                if await self._sent(request, response, answer.pieces, answer.size):
                    self._metrics.batches.labels(answer.dataset).inc()
                    self._metrics.samples.labels(answer.dataset).inc(answer.samples)
                    self._metrics.bytes.labels(answer.dataset).inc(answer.size)
                return response

    async def _sent(
        self, request: web.Request, response: web.StreamResponse, pieces: Iterable[bytes | memoryview], size: int
    ) -> bool:
        """Whether the client has taken all of it in time; if not, its connection is cut."""
        response.content_length = size
        await response.prepare(request)
        try:
            async with asyncio.timeout(_CHUNK_SECONDS) as limit:
                for piece in pieces:
                    view = memoryview(piece)
                    for start in range(0, len(view), _CHUNK):
                        await response.write(view[start : start + _CHUNK])
                        limit.reschedule(asyncio.get_running_loop().time() + _CHUNK_SECONDS)
                await response.write_eof()
        except TimeoutError:
            assert self.connections is not None
            self.connections.cut(request)
            return False
        return True


def _refusal(status: int, refusal: Refusal, headers: Mapping[str, str] | None = None) -> web.Response:
    body = msgspec.json.encode(refusal)
    return web.Response(status=status, body=body, content_type="application/json", headers=headers)


async def _nameless(_: web.Request, response: web.StreamResponse) -> None:
    """What serves is nobody's business."""
    response.headers.pop("Server", None)
