"""Samples per second of the shard store beside np.memmap and six other ways to keep float32 fields on a disk.

The samples are noise, which no codec can shorten much. A round gives every store its turn, with 0 and with 2 workers:
`first`: a fresh reader and fresh workers, files in the page cache; ours compares every checksum now, and the time
of opening counts. `later`: the next epoch of the same reader. `cold`: as `first`, after the files' contents were
dropped from the page cache (posix_fadvise, names and inodes stay). Every epoch is whole and in another random order;
what is printed is the median of the rounds, and the median of the ratios to np.memmap in the same state of the same
round. Starting workers is not counted, except for WebDataset and LitData, which start theirs in their first epoch.
"""

from __future__ import annotations

import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path
from shutil import rmtree
from typing import Any

import numpy as np

from tests.benchmarks._shards_plot import draw
from tests.benchmarks._stores import REFERENCE, STORES, Loader, Store, empty_page_cache, resident_share

HERE = Path(__file__).resolve().parent
KINDS = {"256 x 256": (2000, 1, 256, 256), "2 x 104 x 104": (6000, 2, 104, 104)}
"""Arrays (samples, channel, y, x) of about 500 MB."""
WORKERS = (0, 2)
STATES = ("later", "first", "cold")
ROUNDS = 3
WRITTEN = 1000
RESIDENT_LIMIT = 0.1

WRITING_PROBE = """
import json, sys, time
import numpy as np
from datamodules.batches import Sample
from datamodules.shards.writer import write_dataset
from tests.benchmarks._memory import forget_peak, peak_mib

count = int(sys.argv[2])
base = np.random.default_rng(0).standard_normal((1, 256, 256), dtype=np.float32)
samples = (Sample(f"s{n:06d}", f"g{n // 10}", {"field": base + np.float32(n)}) for n in range(count))
forget_peak()  # the peak of the imports is forgotten
before, began = peak_mib(), time.perf_counter()
write_dataset(sys.argv[1], samples, stem="benchmark", fields={"field": {"axes": "cyx", "unit": "1"}}, splits={},
              seed=0, provenance={})
print(json.dumps({"rate": count / (time.perf_counter() - began), "growth": peak_mib() - before}))
"""

Key = tuple[str, int, str]
"""Store, workers, state."""


def run() -> list[dict[str, object]]:
    rows: list[dict[str, object]] = []
    with tempfile.TemporaryDirectory() as scratch:
        for kind, shape in KINDS.items():
            folder = Path(scratch) / "kind"
            rows += _rows(kind, shape, folder)
            rmtree(folder)
        rows += _writing_rows(Path(scratch))
    (HERE / "results").mkdir(exist_ok=True)
    draw(rows, [store.name for store in STORES], HERE / "results" / "shards.png")
    return rows


def _rows(kind: str, shape: tuple[int, ...], folder: Path) -> list[dict[str, object]]:
    stores = [store for store in STORES if store.is_installed()]
    notes = _write(stores, shape, folder)
    rates: dict[Key, list[float]] = {}
    for number in range(ROUNDS):
        for workers in WORKERS:
            # another store goes first in every round
            for store in stores[number % len(stores) :] + stores[: number % len(stores)]:
                for state, rate in _turn(store, folder / store.files, shape, workers):
                    rates.setdefault((store.name, workers, state), []).append(rate)
    return [_row(kind, shape, store, workers, rates, notes) for store in STORES for workers in WORKERS]


def _write(stores: Iterable[Store], shape: tuple[int, ...], folder: Path) -> dict[str, str]:
    """Write every store's files, once where two share them; return what is to be said about each."""
    array = np.random.default_rng(0).standard_normal(shape, dtype=np.float32)
    array[:, 0, 0, 0] = np.arange(len(array))  # by this the samples are counted
    notes = {}
    for store in stores:
        path = folder / store.files
        if not path.exists():
            path.mkdir(parents=True)
            store.write(path, array)
    os.sync()  # what is not on the disk cannot leave the page cache; file by file this takes minutes
    for store in stores:
        path = folder / store.files
        empty_page_cache(path)
        resident = resident_share(path)
        notes[store.name] = store.note
        if math.isnan(resident) or resident > RESIDENT_LIMIT:
            notes[store.name] += "; the page cache could not be emptied or this could not be checked"
    return notes


def _turn(store: Store, folder: Path, shape: tuple[int, ...], workers: int) -> Iterable[tuple[str, float]]:
    """One round of one store: its rates in the states cold, first and later."""
    empty_page_cache(folder)
    opening, loader = _open(store, folder, shape, workers)
    yield "cold", shape[0] / (opening + _epoch_seconds(loader, 0, shape))
    loader.close()
    del loader
    opening, loader = _open(store, folder, shape, workers)
    yield "first", shape[0] / (opening + _epoch_seconds(loader, 1, shape))
    yield "later", shape[0] / _epoch_seconds(loader, 2, shape)
    loader.close()


def _open(store: Store, folder: Path, shape: tuple[int, ...], workers: int) -> tuple[float, Loader]:
    began = time.perf_counter()
    loader = store.open(folder, shape, workers)
    return time.perf_counter() - began - loader.starting_s, loader


def _epoch_seconds(loader: Loader, number: int, shape: tuple[int, ...]) -> float:
    began = time.perf_counter()
    marks = []
    for batch in loader.epoch(number):
        marks.append(batch[:, 0, 0, 0].clone())
    seconds = time.perf_counter() - began
    found = np.sort(np.concatenate([mark.numpy() for mark in marks]))
    if batch.shape[1:] != shape[1:] or not np.array_equal(found, np.arange(shape[0])):
        raise RuntimeError(f"an epoch gave {len(found)} samples of shape {tuple(batch.shape[1:])}, not {shape}")
    return seconds


def _row(
    kind: str,
    shape: tuple[int, ...],
    store: Store,
    workers: int,
    rates: dict[Key, list[float]],
    notes: dict[str, str],
) -> dict[str, object]:
    row: dict[str, Any] = {"samples": f"{shape[0]} of {kind}", "store": store.name, "workers": workers}
    for state in STATES if store.name in notes else ():
        found, reference = rates[store.name, workers, state], rates[REFERENCE, workers, state]
        row[f"{state}: samples/s"] = round(statistics.median(found))
        row[f"{state}: of memmap"] = statistics.median(a / b for a, b in zip(found, reference, strict=True))
    row["note"] = notes.get(store.name, f"not installed ({store.mend})")
    return row


def _writing_rows(scratch: Path) -> list[dict[str, object]]:
    rows: list[dict[str, object]] = []
    for count in (WRITTEN, 4 * WRITTEN):
        folder = scratch / f"written{count}"
        command = [sys.executable, "-c", WRITING_PROBE, str(folder), str(count)]
        root = HERE.parents[1]
        found = json.loads(subprocess.run(command, cwd=root, check=True, text=True, capture_output=True).stdout)
        rmtree(folder)
        rows.append(
            {"samples": f"{count} of 256 x 256", "store": "ours, writing", "writing: samples/s": round(found["rate"])}
            | {"writing: peak MB above start": found["growth"], "note": "write_dataset, a process of its own"}
        )
    return rows
