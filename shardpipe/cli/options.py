"""Arguments and options that several commands share, each declared once.

They are read as objects, by `planned` and by typer, so this module does not postpone the evaluation of annotations.
"""

import inspect
from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from shardpipe.order import DEFAULT_WINDOW, Batching

if TYPE_CHECKING:
    from shardpipe.loading import BatchSequence

__all__ = [
    "Data",
    "Jobs",
    "Json",
    "OnError",
    "Out",
    "Overwrite",
    "Relative",
    "Schemes",
    "Staging",
    "WorldSize",
    "planned",
]

Data = Annotated[str, typer.Argument(metavar="DIR", help="A dataset's folder or URL.")]
Out = Annotated[str, typer.Option("-o", "--out", metavar="DIR", help="Folder or URL of the new dataset or index.")]
Staging = Annotated[
    str | None,
    typer.Option(
        metavar="DIR",
        help="Where a dataset for a URL grows, in a folder named by the URL, with room for two shards. A run that was "
        "cut short goes on from there. By default ~/.cache/shardpipe/packing.",
        show_default=False,
    ),
]
Jobs = Annotated[
    int | None,
    typer.Option(help="Processes that read and decode.", min=1, max=1024, show_default="the cores that it may use"),
]
OnError = Annotated[
    Literal["fail", "skip"], typer.Option(help="What a bad sample does: end it, or be left out and listed.")
]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace the dataset that DIR holds.")]
Relative = Annotated[
    bool,
    typer.Option("--relative", help="Name the shards in shards.list relative to DIR, for it is to be moved."),
]
Json = Annotated[bool, typer.Option("--json", help="Print what a program would read.")]
Schemes = Annotated[
    list[str] | None,
    typer.Option(
        "--scheme",
        metavar="NAME",
        help="A kind of URL by which the dataset may name shards, besides its own and plain ones like s3 and https.",
        show_default=False,
    ),
]
WorldSize = Annotated[int, typer.Option(help="Ranks of the run, since the epoch began.", min=1, max=1 << 16)]


def planned(command: Callable[..., None]) -> Callable[..., None]:
    """Gives a command the dataset and the flags of a run's plan; it is called with the `sequence` that they name."""
    flags = inspect.signature(_sequence).parameters
    own = inspect.signature(command).parameters.values()

    def run(**given: Any) -> None:
        sequence = _sequence(**{name: given.pop(name) for name in flags})
        command(sequence=sequence, **given)

    # The dataset comes first, then the command's own parameters, then the flags that all share.
    data, *shared = flags.values()
    parameters = [data, *(p for p in own if p.name != "sequence"), *shared]
    run.__name__, run.__doc__ = command.__name__, command.__doc__
    run.__annotations__ = {p.name: p.annotation for p in parameters}
    run.__signature__ = inspect.Signature([p.replace(kind=p.KEYWORD_ONLY) for p in parameters])  # type: ignore[attr-defined]
    return run


def _sequence(
    data: Data,
    batch_size: Annotated[int | None, typer.Option(help="Samples of a batch.")] = None,
    batch_seconds: Annotated[float | None, typer.Option(help="Most padded seconds of a batch.")] = None,
    min_seconds: Annotated[float | None, typer.Option(help="Leave out shorter samples.")] = None,
    max_seconds: Annotated[float | None, typer.Option(help="Leave out longer samples.")] = None,
    seed: Annotated[int, typer.Option(help="Seed of the run.")] = 0,
    shuffle: Annotated[bool, typer.Option("--shuffle/--no-shuffle", help="Whether the order is shuffled.")] = True,
    window: Annotated[int, typer.Option(help="Samples of a lane that are shuffled together.")] = DEFAULT_WINDOW,
    lanes: Annotated[int | None, typer.Option(help="Interleaved streams of the order; default by the data.")] = None,
    batches_per_step: Annotated[
        int | None,
        typer.Option(
            help="Batches of an optimizer step, all ranks together; else one for every rank.", min=1, max=1 << 32
        ),
    ] = None,
    scheme: Schemes = None,
) -> "BatchSequence":
    from shardpipe.dataset import Index
    from shardpipe.loading import BatchSequence

    batching = Batching(
        batch_size=batch_size, batch_seconds=batch_seconds, min_seconds=min_seconds, max_seconds=max_seconds
    )
    index = Index.load(data, schemes=scheme or ())
    return BatchSequence(
        index,
        batching,
        seed=seed,
        shuffle=shuffle,
        window=window,
        lanes=lanes,
        batches_per_step=batches_per_step,
    )
