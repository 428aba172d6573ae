"""How `mechanolab data` shows its work: a progress bar on a terminal, and what a data set holds as tables."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mechanolab.config import flatten

if TYPE_CHECKING:
    from rich.console import Console

    from datamodules.shards.schema import Manifest


@contextlib.contextmanager
def progress_bar(doing: str, total: int | None, unit: str) -> Iterator[Callable[[int], None]]:
    """Show a bar with rate and remaining time on a terminal, and one line at the start elsewhere; all on stderr.

    Args:
        doing: What is being done, for example `simulating circular`.
        total: How many there will be; None when nobody knows.
        unit: What is counted, for example `samples`.

    Yields:
        A function to call with the number done so far.
    """
    from rich import progress as bars
    from rich.console import Console

    console = Console(stderr=True, markup=False, highlight=False)
    if not console.is_terminal:
        print(f"{doing}: {total if total is not None else 'all'} {unit}", file=sys.stderr)
        yield lambda done: None
        return
    columns = (
        bars.TextColumn("{task.description}"),
        bars.BarColumn(),
        bars.MofNCompleteColumn(),
        bars.TextColumn("{task.fields[rate]}"),
        bars.TimeRemainingColumn(),
    )
    with bars.Progress(*columns, console=console, transient=True) as display:
        task = display.add_task(doing, total=total, rate="")
        start = time.monotonic()

        def advance(done: int) -> None:
            rate = done / max(time.monotonic() - start, 1e-9)
            display.update(task, completed=done, rate=f"{rate:.0f} {unit}/s")

        yield advance


def print_manifest(folder: Path | str, manifest: Manifest) -> None:
    """Print fields, splits, provenance and best possible score of the data set in `folder` to stdout."""
    from rich import box
    from rich.table import Table

    console = _console()
    counts = manifest.counts
    print(f"{folder}: {manifest.stem} / {manifest.dataset}, format version {manifest.schema_version}")
    groups = f"{counted(counts['groups'], 'group')} ({manifest.group_key})"
    print(f"{counted(counts['samples'], 'sample')}, {groups}, {counted(counts['shards'], 'shard')}")
    fields = Table("field", "shape", "dtype", "unit", "axes", box=box.SIMPLE)
    for name, field in manifest.fields.items():
        shape = " x ".join(map(str, field.shape)) or "scalar"
        fields.add_row(name, shape, field.dtype, field.unit, field.axes or "-")
    console.print(fields)
    print_splits(manifest.splits)
    provenance = dict(manifest.provenance)
    best = provenance.pop("irreducible_error", None)
    made = Table("provenance", "", box=box.SIMPLE)
    if provenance.get("made_by") == "merge" and isinstance(provenance.get("sources"), list):
        for source in provenance.pop("sources"):
            made.add_row("source", _source(source))
    for key, value in flatten(provenance).items():
        made.add_row(key, str(value))
    console.print(made)
    if best is not None:
        print(f"best possible: {_best_possible(best)}")


def _source(source: Any) -> str:
    """One of the data sets that were merged; what is written in another way stands as it is."""
    match source:
        case {"dataset": dataset, "identity": identity, "provenance": {**made}}:
            return f"{dataset}, made by {made.get('made_by', 'unknown means')}, {identity}"
    return str(source)


def _best_possible(best: Any) -> str:
    """The best possible score; what is written in another way stands as it is."""
    match best:
        case {"metric": metric, "value": int() | float() as value, "how": how}:
            return f"{metric} {value:.4g} ({how})"
    return str(best)


def print_splits(splits: Mapping[str, Mapping[str, Any]]) -> None:
    """Print the samples and groups of every split of the manifest's `splits` entries to stdout."""
    from rich import box
    from rich.table import Table

    table = Table("split scheme", "by", "train", "val", "test", "unused", box=box.SIMPLE)
    for name, scheme in splits.items():
        cells = [
            f"{scheme['samples'][split]} ({counted(scheme['groups'][split], 'group')})"
            for split in ("train", "val", "test", "unused")
        ]
        table.add_row(name, scheme["unit"], *cells)
    _console().print(table)


def _console() -> Console:
    """Of a terminal's width, or wide enough for the tables elsewhere."""
    from rich.console import Console

    console = Console(markup=False, highlight=False, emoji=False)
    return console if console.is_terminal else Console(markup=False, highlight=False, emoji=False, width=140)


def counted(number: int, noun: str) -> str:
    """Return `1 shard`, `2 shards`."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"
