"""What `mechanolab data simulate|convert|inspect|verify` does: stems are looked up by name, data sets are written,
shown and checked.

A simulator is `datamodules.simulators.<stem>`, a converter `datamodules.converters.<stem>`, the picture of a data set
`lightning_modules.figures.<stem>.contact_sheet`, or `data_pictures` where there is none or a field that it draws is
missing. Everything that is wrong with a request or its input is a RequestError of one sentence. Results go to stdout,
progress to stderr.
"""

from __future__ import annotations

import contextlib
import dataclasses
import importlib
import json
import os
import pkgutil
import re
import sys
import time
import typing
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import BrokenExecutor, Future
from pathlib import Path
from types import ModuleType
from typing import Any

from mechanolab.config import RequestError, check_value, data_root, flatten, nearest
from mechanolab.data_display import counted, print_manifest, progress_bar

SAMPLES_ON_SHEET = 24
SERIAL_SECONDS = 4.0
"""Simulations expected to be shorter than this stay in one process: starting others takes about as long."""
SERIAL_VERIFY_BYTES = 2**30


def simulate(
    stem: str,
    *,
    out: Path | None = None,
    count: int | None = None,
    seed: int = 0,
    workers: int | None = None,
    parameters: Mapping[str, Any] | None = None,
) -> int:
    """Make a synthetic data set; where the same one already stands, say so and do nothing.

    The result depends on the stem, count, seed and parameters only, not on the number of workers.

    Args:
        stem: Of the simulator.
        out: The data set's own folder; data/<stem>/twin when None.
        count: Number of samples; the simulator's DEFAULT_COUNT when None.
        seed: Of the simulation and the split draws.
        workers: Processes; None chooses by the cores and the work to do.
        parameters: Values for the simulator's `Parameters` that differ from its defaults.

    Returns:
        0.

    Raises:
        RequestError: The request cannot be met, or another data set stands in the folder.
    """
    module = _module("simulators", stem, "simulate_group")
    count = getattr(module, "DEFAULT_COUNT", None) if count is None else count
    if count is None:
        raise RequestError(f"the simulator {stem} has no default count; say how many samples with --count")
    for name, value, least in (("count", count, 1), ("seed", seed, 0), ("workers", workers, 1)):
        if value is not None and value < least:
            raise RequestError(f"--{name} must be at least {least}, got {value}")
    accepted = typing.get_type_hints(module.Parameters)
    for name, value in (parameters or {}).items():
        if name not in accepted:
            raise RequestError(f"the simulator {stem} has no parameter {name!r}{nearest(name, accepted)}")
        check_value(name, value, accepted[name])
    folder = _folder(out, stem, "twin")
    with request_errors():
        numbers = module.Parameters(**(parameters or {}))
        provenance = {
            "made_by": "simulator",
            "parameters": dataclasses.asdict(numbers),
            "seed": seed,
            "count": count,
            "irreducible_error": _irreducible_error(module, numbers),
            "licence": module.LICENCE,
        }
        if _stands_already(folder, stem, provenance, keys=("made_by", "parameters", "seed", "count")):
            return 0
        sizes = module.group_sizes(count, numbers)
        samples = _simulated(module, seed, sizes, numbers, workers)
        _write(folder, samples, count, module, stem, seed, provenance, doing=f"simulating {stem}")
    return 0


def convert(stem: str, *, source: Path, out: Path | None = None) -> int:
    """Turn an original archive into a data set; where the same one already stands, say so and do nothing.

    Args:
        stem: Of the converter.
        source: Folder of the unpacked archive; its layout is recognised.
        out: The data set's own folder; data/<stem>/<name of the source, lower case> when None.

    Returns:
        0.

    Raises:
        RequestError: The source is not readable as such an archive, or another data set stands in the folder.
    """
    module = _module("converters", stem, "convert")
    source = Path(source).expanduser()
    if not source.exists():
        raise RequestError(f"source {source} does not exist")
    folder = _folder(out, stem, re.sub(r"\s+", "_", source.resolve().name.lower()))
    with request_errors():
        provenance = {"made_by": "converter", **module.provenance(source)}
        # a manifest travels: it must not say where on this machine the archive lay
        text = json.dumps(provenance).replace(json.dumps(str(source.resolve()))[1:-1], source.resolve().name)
        provenance = json.loads(text)
        if _stands_already(folder, stem, provenance, keys=tuple(provenance)):
            return 0
        doing = f"converting {stem}"
        _write(folder, module.convert(source), None, module, stem, 0, provenance, doing=doing, source=source)
    return 0


def verify(folder: Path | str, *, workers: int | None = None) -> int:
    """Check every byte of a data set and print a line per fault.

    Args:
        folder: The data set's own folder or its URL.
        workers: Processes; None chooses by the cores and the size.

    Returns:
        0 without faults, 1 with.

    Raises:
        RequestError: There is no data set in `folder`.
    """
    from datamodules.shards.remote import open_mirror
    from datamodules.shards.schema import Manifest, ShardError
    from datamodules.shards.verify import NOTE, verify_dataset

    folder = _place(folder)
    with request_errors():
        try:
            manifest = Manifest.read(open_mirror(folder) if isinstance(folder, str) else folder)
        except ShardError as error:
            needed = "manifest or index" if isinstance(folder, str) else "the manifest"
            print(error)
            print(f"{folder}: {needed} is faulty, so nothing else could be checked")
            return 1
        if workers is None:
            workers = _cores() if sum(shard["bytes"] for shard in manifest.shards) > SERIAL_VERIFY_BYTES else 1
        with progress_bar(f"verifying {folder}", len(manifest.shards), "shards") as advance:
            lines = verify_dataset(folder, workers=workers, on_shard=advance)
    for line in lines:
        print(line)
    faults = sum(not line.startswith(NOTE) for line in lines)
    held = f"{counted(manifest.counts['samples'], 'sample')} in {counted(len(manifest.shards), 'shard')}"
    print(f"{folder}: {held}, {counted(faults, 'fault') if faults else 'no fault'}")
    return 1 if faults else 0


def inspect(folder: Path | str, *, picture: Path | None = None) -> int:
    """Print what a data set holds and draw a contact sheet of samples spread evenly over it.

    Args:
        folder: The data set's own folder or its URL.
        picture: Where the contact sheet goes; when None contact_sheet.png in the folder, of a URL in the working
            directory.

    Returns:
        0.

    Raises:
        RequestError: There is no readable data set in `folder`, or the picture cannot be written.
    """
    import io

    import numpy as np

    from datamodules.shards.reader import ShardDataset
    from datamodules.shards.schema import replace_file

    folder = _place(folder)
    with request_errors():
        dataset = ShardDataset(folder)
        print_manifest(folder, dataset.manifest)

        def samples(most: int) -> list[Any]:
            chosen = np.unique(np.linspace(0, len(dataset) - 1, min(most, len(dataset))).round().astype(int))
            return dataset.__getitems__(chosen.tolist())

        draw, figure = _contact_sheet(dataset.manifest.stem), None
        if draw is not None:
            shown = samples(SAMPLES_ON_SHEET)
            # the paper's own picture says which fields it draws by asking for them
            with contextlib.suppress(KeyError):
                figure = draw(shown)
        if figure is None:
            from mechanolab import data_pictures

            figure = data_pictures.contact_sheet(dataset.fields, samples(data_pictures.MOST_SAMPLES))
        content = io.BytesIO()
        figure.savefig(content, format="png")
        if picture is None:
            picture = (Path() if isinstance(folder, str) else folder) / "contact_sheet.png"
        picture = picture.expanduser()
        replace_file(picture, content.getvalue())
    print(f"contact sheet: {picture}")
    return 0


# -- looking up -------------------------------------------------------------------------------------------------------


def _module(kind: str, stem: str, function: str) -> ModuleType:
    """The module datamodules.<kind>.<stem>; files beside it that lack `function` serve several papers and are none."""
    package = importlib.import_module(f"datamodules.{kind}")
    if re.fullmatch(r"[a-z][a-z0-9_]*", stem):
        name = f"datamodules.{kind}.{stem}"
        try:
            module = importlib.import_module(name)
        except ModuleNotFoundError as error:
            if error.name != name:
                raise
        else:
            if hasattr(module, function):
                return module
    found = sorted(entry.name for entry in pkgutil.iter_modules(package.__path__))
    stems = [name for name in found if hasattr(importlib.import_module(f"datamodules.{kind}.{name}"), function)]
    raise RequestError(f"there are no {kind} for {stem!r}{nearest(stem, stems)}; there are: {', '.join(stems)}")


def _irreducible_error(module: ModuleType, parameters: Any) -> dict[str, Any] | None:
    """What the simulator says about the best possible score; None where it knows none."""
    known = getattr(module, "irreducible_error", None)
    return None if known is None else known(parameters)


def _contact_sheet(stem: str) -> Callable[[Sequence[Any]], Any] | None:
    name = f"lightning_modules.figures.{stem}"
    try:
        return getattr(importlib.import_module(name), "contact_sheet", None)
    except ModuleNotFoundError as error:
        if error.name != name:
            raise
        return None


def _folder(out: Path | None, stem: str, dataset: str) -> Path:
    """Where a data set is written."""
    from datamodules.shards.remote import folder_in

    place = _place(out if out is not None else folder_in(data_root(), stem, dataset))
    if isinstance(place, str):
        raise RequestError(f"{place} is remote; make the data set in a local --out and copy the finished folder there")
    return place


def _place(folder: Path | str) -> Path | str:
    """A URL as text, anything else as a path."""
    from datamodules.shards.remote import is_remote

    return str(folder) if is_remote(folder) else Path(folder).expanduser()


@contextlib.contextmanager
def request_errors() -> Iterator[None]:
    """What the library says about bad input, as a RequestError."""
    try:
        yield
    except BrokenExecutor as error:
        raise RequestError("a worker process was killed, perhaps for lack of memory; use fewer --workers") from error
    except OSError as error:
        where = f"{error.filename}: " if error.filename and error.strerror else ""
        raise RequestError(f"{where}{error.strerror or error}") from error
    except ValueError as error:
        raise RequestError(str(error)) from error


def _stands_already(folder: Path, stem: str, provenance: dict[str, Any], *, keys: Sequence[str]) -> bool:
    """Whether the data set asked for stands in `folder`; RequestError when another one does."""
    from datamodules.shards.schema import MANIFEST_NAME, Manifest

    if not (folder / MANIFEST_NAME).exists():
        return False
    manifest = Manifest.read(folder)
    as_stored = json.loads(json.dumps(provenance))
    wanted = flatten({"stem": stem, **{key: as_stored[key] for key in keys}})
    present = flatten({"stem": manifest.stem, **{key: manifest.provenance.get(key) for key in keys}})
    different = [key for key in {**wanted, **present} if wanted.get(key) != present.get(key)]
    if different:
        key = different[0]
        raise RequestError(
            f"{folder} already holds a data set with {key} {present.get(key)!r}, not {wanted.get(key)!r}; "
            "choose another --out or remove the folder"
        )
    print(
        f"{folder} is there already: {counted(manifest.counts['samples'], 'sample')}, made in the same way",
        file=sys.stderr,
    )
    return True


# -- writing ----------------------------------------------------------------------------------------------------------


def _write(
    folder: Path,
    samples: Iterator[Any],
    count: int | None,
    module: ModuleType,
    stem: str,
    seed: int,
    provenance: dict[str, Any],
    *,
    doing: str,
    source: Path | None = None,
) -> None:
    from importlib.metadata import version

    from datamodules.shards.writer import write_dataset

    start = time.monotonic()
    # closing the stream stops its worker processes when writing fails
    with contextlib.closing(samples) as stream, progress_bar(doing, count, "samples") as advance:  # type: ignore[type-var]
        manifest = write_dataset(
            folder,
            stream,
            stem=stem,
            fields=_declared(module, "fields", source),
            splits=_declared(module, "splits", source),
            seed=seed,
            provenance={**provenance, "made_with": f"mechanolab {version('mechanolab')}"},
            group_key=getattr(module, "GROUP_KEY", "group"),
            codes=module.codes(source) if source is not None and hasattr(module, "codes") else None,
            on_sample=advance,
        )
    seconds = time.monotonic() - start
    written = manifest.counts["samples"]
    size = sum(shard["bytes"] for shard in manifest.shards) / 1e6
    rate = written / max(seconds, 1e-9)
    print(
        f"{folder}: {counted(written, 'sample')}, {size:.1f} MB, in {seconds:.1f} s ({rate:.0f} samples/s)",
        file=sys.stderr,
    )


def _declared(module: ModuleType, name: str, source: Path | None) -> dict[str, Any]:
    """FIELDS or SPLITS of a module; a converter for which they depend on the archive has `fields` or `splits`.

    One that reads a split off the archive, instead of having it drawn, gives it in `codes`, see `write_dataset`.
    """
    dependent = getattr(module, name, None) if source is not None else None
    return dependent(source) if dependent is not None else getattr(module, name.upper())


def _simulated(
    module: ModuleType, seed: int, sizes: Sequence[int], parameters: Any, workers: int | None
) -> Iterator[Any]:
    """The samples of all groups in order, whoever makes them."""
    from datamodules.shards.processes import worker_pool

    start = time.monotonic()
    yield from module.simulate_group(seed, 0, sizes[0], parameters)
    expected = (time.monotonic() - start) * (len(sizes) - 1)
    if workers is None:
        workers = 1 if expected < SERIAL_SECONDS else _cores()
    workers = min(workers, len(sizes) - 1)
    if workers <= 1:
        for group in range(1, len(sizes)):
            yield from module.simulate_group(seed, group, sizes[group], parameters)
        return
    with worker_pool(workers, module.__name__) as pool:
        running: deque[Future[list[Any]]] = deque()
        for group in range(1, len(sizes)):
            running.append(pool.submit(module.simulate_group, seed, group, sizes[group], parameters))
            # the queue is bounded: a slow disk must not fill the memory with finished groups
            if len(running) > 4 * workers:
                yield from running.popleft().result()
        while running:
            yield from running.popleft().result()


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
