"""The data service: batches for trainers elsewhere.

In: requests over HTTP, and what a configuration names. Out: batches, the very ones that the trainer would have made;
never is a line of a client's code run, nor a path of a client's opened. A server holds nothing of any run: each answer
depends on its request alone. docs/service.md says how to run it, and specifies what is said.

    config      settings, checked; datasets: what they name, opened
    making      a request -> a batch -> an answer, in one thread
    jobs        requests that wait, are made together, and kept for others; room: the bounds on what all of it takes
    app         HTTP: paths, tokens, errors; connections: how many, and how long
    metrics     what is counted
    running     from start to drain
"""

from typing import TYPE_CHECKING

from shardpipe.runtime import lazily

if TYPE_CHECKING:
    from shardpipe.serve.config import DatasetConfig, ServeConfig, datasets_of
    from shardpipe.serve.datasets import OpenDataset
    from shardpipe.serve.running import open_datasets, serve, tls_of
else:
    # They need torch and aiohttp.
    __getattr__, __dir__ = lazily(
        __name__,
        config=["DatasetConfig", "ServeConfig", "datasets_of"],
        datasets=["OpenDataset"],
        running=["open_datasets", "serve", "tls_of"],
    )

__all__ = ["DatasetConfig", "OpenDataset", "ServeConfig", "datasets_of", "open_datasets", "serve", "tls_of"]
