"""A server's life: it opens its datasets, listens, and when it is asked to end, first brings what it has begun to its
end.
"""

from __future__ import annotations

import asyncio
import logging
import resource
import signal
import ssl
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from aiohttp import web

from shardpipe.cache import ShardCache
from shardpipe.errors import ConfigError, StoreError
from shardpipe.loading import read_tokens
from shardpipe.serve.app import Service
from shardpipe.serve.config import ServeConfig
from shardpipe.serve.connections import HANDSHAKE_SECONDS, Connections
from shardpipe.serve.datasets import OpenDataset
from shardpipe.serve.jobs import Jobs
from shardpipe.serve.metrics import Metrics

__all__ = ["open_datasets", "serve", "tls_of"]

_log = logging.getLogger("shardpipe.serve")

_LOOK = 0.05
_END_SECONDS = 1.0
"""For what goes on after the drain, which the library would give another minute."""


def open_datasets(config: ServeConfig) -> dict[str, OpenDataset]:
    """The datasets, their indexes read and their functions imported. Raises ConfigError, StoreError, CorruptIndex."""
    cache = None if config.cache_dir is None else ShardCache(config.cache_dir, config.cache_bytes)
    return {name: OpenDataset(name, dataset, cache) for name, dataset in config.datasets.items()}


def tls_of(config: ServeConfig) -> ssl.SSLContext | None:
    """What secures connections, if anything does. Raises ConfigError."""
    if config.tls_cert is None:
        return None
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    try:
        context.load_cert_chain(config.tls_cert, config.tls_key, password=_no_password)
    except (OSError, ValueError) as error:
        rule = f"it must be a certificate and its key, in PEM and without a password ({type(error).__name__})"
        raise ConfigError("tls_cert", config.tls_cert, rule) from None
    return context


def _no_password() -> str:
    raise ValueError("it has a password")


def serve(config: ServeConfig, *, started: Callable[[str, dict[str, OpenDataset]], None]) -> None:
    """Serves until SIGTERM or SIGINT; SIGHUP has it read its tokens again. `started` is told its URL and what it has.

    Raises ConfigError, StoreError and CorruptIndex.
    """
    # A quiet log of our own: theirs quote what clients send, tokens among it.
    for name in ("aiohttp.server", "aiohttp.web", "aiohttp.access", "asyncio"):
        logging.getLogger(name).addFilter(_untold)
    _more_files()
    tls, tokens = tls_of(config), _tokens(config)
    asyncio.run(_serve(config, open_datasets(config), tls, tokens, started))


async def _serve(
    config: ServeConfig,
    datasets: dict[str, OpenDataset],
    tls: ssl.SSLContext | None,
    tokens: list[str],
    started: Callable[[str, dict[str, OpenDataset]], None],
) -> None:
    metrics = Metrics(datasets)
    jobs = Jobs(datasets, metrics, threads=config.threads, memory=config.memory_bytes, keep=config.keep_bytes)
    service = Service(datasets, jobs, metrics, tokens)
    runner = web.AppRunner(
        service.app(), access_log=None, handler_cancellation=True, handle_signals=False, shutdown_timeout=_END_SECONDS
    )
    await runner.setup()
    assert runner.server is not None
    connections = service.connections = Connections(runner.server, config.connections)
    loop, stop = asyncio.get_running_loop(), asyncio.Event()
    try:
        server = await loop.create_server(
            connections,
            config.host,
            config.port,
            ssl=tls,
            backlog=256,
            ssl_handshake_timeout=None if tls is None else HANDSHAKE_SECONDS,
        )
    except OSError as error:
        fix = "Choose another --bind."
        raise StoreError(f"cannot listen there ({error.strerror or error})", url=config.bind, fix=fix) from error
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    loop.add_signal_handler(signal.SIGHUP, _renew, config, service)
    sweeping = asyncio.create_task(connections.sweep())
    host = f"[{config.host}]" if ":" in config.host else config.host
    started(f"{'https' if tls else 'http'}://{host}:{server.sockets[0].getsockname()[1]}", datasets)
    await stop.wait()
    service.draining = True
    until = time.monotonic() + config.drain_seconds
    while service.under_way and time.monotonic() < until:
        await asyncio.sleep(_LOOK)
    sweeping.cancel()
    server.close()
    jobs.close()
    await runner.cleanup()


def _tokens(config: ServeConfig) -> list[str]:
    return [] if config.token_file is None else read_tokens(config.token_file)


def _renew(config: ServeConfig, service: Service) -> None:
    try:
        service.tokens = _tokens(config)
    except ConfigError as error:
        _log.warning("the tokens stay as they were: %s", error)


def _untold(record: logging.LogRecord) -> Any:
    """Of what a library says, the kind of error alone."""
    kind = record.exc_info[0] if record.exc_info else None
    record.msg, record.args = f"a connection failed ({kind.__name__ if kind else 'it made no sense'})", ()
    record.exc_info = record.exc_text = record.stack_info = None
    return True


def _more_files() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard if soft != resource.RLIM_INFINITY else soft, hard))
