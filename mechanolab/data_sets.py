"""What `mechanolab data merge|split|export` does with data sets that stand.

Everything that is wrong with a request or its input is a RequestError of one sentence. Results go to stdout, progress
to stderr.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mechanolab.config import RequestError
from mechanolab.data import request_errors
from mechanolab.data_display import counted, print_splits, progress_bar

if TYPE_CHECKING:
    from datamodules.shards.merge import Merge

FOLDS_NAME = "fold"


def merge(folders: Sequence[Path | str], *, out: Path, prefix: bool = False) -> int:
    """Make one data set of several; where the same merge already stands, say so and do nothing.

    Args:
        folders: The data sets' own folders, two or more.
        out: The new data set's own folder.
        prefix: Put the data sets' names before ids and groups.

    Returns:
        0.

    Raises:
        RequestError: The data sets do not fit together, or another one stands in `out`.
    """
    from datamodules.shards.merge import plan_merge, write_merge

    out = Path(out).expanduser()
    with request_errors():
        plan = plan_merge(folders, prefix=prefix)
        if _stands_already(out, plan):
            return 0
        for note in plan.notes:
            print(note)
        with progress_bar(f"merging {counted(len(folders), 'data set')}", plan.samples, "samples") as advance:
            made_with = {"made_with": f"mechanolab {version('mechanolab')}"}
            manifest = write_merge(plan, out, provenance=made_with, on_sample=advance)
    counts = manifest.counts
    print(f"{out}: {counted(counts['samples'], 'sample')}, {counted(counts['groups'], 'group')}")
    print_splits(manifest.splits)
    return 0


def split(
    folder: Path,
    *,
    name: str | None = None,
    shares: Mapping[str, float] | None = None,
    folds: int | None = None,
    seed: int = 0,
    by_sample: bool = False,
) -> int:
    """Add split schemes to a data set and print how many samples and groups each split has.

    Args:
        folder: The data set's own folder.
        name: Of the scheme, or what the folds are called before their number (`fold` when None).
        shares: `train`, `val`, `test` to shares of the samples; a missing one is 0.
        folds: Number of folds, instead of shares.
        seed: Of the draw.
        by_sample: Split sample by sample, which leaks groups from training to test.

    Returns:
        0.

    Raises:
        RequestError: The request is incomplete or contradicts itself, the scheme exists, or it cannot be drawn.
    """
    from datamodules.shards.resplit import Folds, add_splits

    folder = Path(folder).expanduser()
    if (folds is None) == (not shares):
        raise RequestError("say either the shares, such as --train 0.8 --val 0.1 --test 0.1, or --folds K")
    if folds is None and name is None:
        raise RequestError("a split scheme needs a --name")
    if seed < 0:
        raise RequestError(f"--seed must be at least 0, got {seed}")
    unit = "sample" if by_sample else "group"
    schemes: dict[str, dict[str, Any]] | Folds
    if folds is not None:
        schemes = Folds(folds, FOLDS_NAME if name is None else name, unit)
    else:
        schemes = {str(name): {"unit": unit, **(shares or {})}}
    with request_errors():
        before = _schemes(folder)
        manifest = add_splits(folder, schemes, seed=seed)
    added = {scheme: entry for scheme, entry in manifest.splits.items() if scheme not in before}
    print_splits(added)
    if by_sample:
        print("by sample: samples of one group lie in several splits; these schemes leak by design")
    print(f"{folder}: {counted(len(added), 'split scheme')} added; data.split={next(iter(added))} trains with it")
    return 0


def export(
    folder: Path | str,
    *,
    out: Path,
    file_format: str = "npy",
    fields: Sequence[str] | None = None,
    split: str | None = None,
) -> int:
    """Write the samples of a data set as NumPy or TIFF files with a table of the rest.

    Args:
        folder: The data set's own folder.
        out: The new folder.
        file_format: `npy` or `tiff`.
        fields: Names of the fields to export; all when None.
        split: `<scheme>:<split>`, for example `default:test`; every sample when None.

    Returns:
        0.

    Raises:
        RequestError: There is no such data set, field or split, TIFF cannot hold a field, or something stands in `out`.
    """
    from datamodules.shards.export import export_dataset

    out = Path(out).expanduser()
    scheme, _, part = (split or "").partition(":")
    if split is not None and not (scheme and part):
        raise RequestError(f"--split must be a scheme and a split such as default:train, got '{split}'")
    with request_errors(), contextlib.ExitStack() as stack:
        advance = None

        def show(done: int, total: int) -> None:
            nonlocal advance
            if advance is None:
                advance = stack.enter_context(progress_bar(f"exporting {folder}", total, "samples"))
            advance(done)

        count = export_dataset(
            folder,
            out,
            file_format=file_format,  # type: ignore[arg-type]
            fields=fields,
            scheme=scheme or None,
            split=part or None,
            on_sample=show,
        )
    print(f"{out}: {counted(count, 'sample')} as {file_format} files, samples.csv and fields.json")
    return 0


def _schemes(folder: Path) -> set[str]:
    from datamodules.shards.schema import Manifest

    return set(Manifest.read(folder).splits)


def _stands_already(out: Path, plan: Merge) -> bool:
    """Whether this merge stands in `out`; RequestError when another data set does."""
    from datamodules.shards.schema import MANIFEST_NAME, Manifest

    if not (out / MANIFEST_NAME).exists():
        return False
    manifest = Manifest.read(out)
    if any(manifest.provenance.get(key) != plan.provenance[key] for key in ("made_by", "sources", "prefixes")):
        raise RequestError(f"{out} already holds another data set; choose another --out or remove the folder")
    for name, scheme in plan.splits.items():
        held = manifest.splits.get(name)
        # one that was drawn, not taken from the sources, has a seed
        if held is None or (held["seed"] is None) != (name in plan.codes) or held["unit"] != scheme["unit"]:
            raise RequestError(
                f"{out} holds this merge without the split scheme {name!r} that the merge would have today; "
                "choose another --out or remove the folder"
            )
    print(
        f"{out} is there already: {counted(manifest.counts['samples'], 'sample')}, merged from the same data sets",
        file=sys.stderr,
    )
    return True
