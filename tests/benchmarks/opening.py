"""Opening a data set of a million samples in ten thousand shards, and what an epoch costs as data sets grow.

The large data set has a complete manifest and index and no shard file: opening must not need one. It is opened in a
fresh process; memory is the peak of the resident set above an interpreter that has imported torch, so the reader and
h5py count as well. The cost of an epoch is fitted as seconds = slope * samples + constant, and as a power of samples.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from datamodules.batches import Sample
from datamodules.shards.index import Index, read_index, write_index
from datamodules.shards.reader import ShardDataset
from datamodules.shards.sampler import EpochBatchSampler
from datamodules.shards.schema import FORMAT_NAME, SCHEMA_VERSION, Manifest, shard_name
from datamodules.shards.splits import draw_splits, split_counts
from datamodules.shards.writer import write_dataset

ROOT = Path(__file__).resolve().parents[2]
SAMPLES = 1_000_000
SHARDS = 10_000
GROUP_SAMPLES = 50
LOOKUPS = (10_000, 30_000, 100_000, 300_000, 1_000_000)
READS = (1000, 2000, 4000, 8000, 16000)
READ_SHAPE = (1, 16, 16)
READ_SHARD_BYTES = 2**18
BATCH = 32
ROUNDS = 3
GOAL_SECONDS = 1.0
GOAL_MB = 100.0
FIELDS = {"image": {"axes": "cyx", "unit": "grey level"}}
SCHEME = {"unit": "group", "train": 0.8, "val": 0.1, "test": 0.1}

PROBE = """
import json, sys, time
import torch
from tests.benchmarks._memory import forget_peak, peak_mib

forget_peak()  # the peak of the imports is forgotten
before = peak_mib()
from datamodules.shards.reader import ShardDataset
from datamodules.shards.sampler import EpochBatchSampler
began = time.perf_counter()
dataset = ShardDataset(sys.argv[1], **json.loads(sys.argv[2]))
opened = time.perf_counter()
after_opening = peak_mib()
seen = sum(len(batch) for batch in EpochBatchSampler(len(dataset), batch_size=32, seed=0, shuffle=True))
walked = time.perf_counter()
assert seen == len(dataset)
print(json.dumps({"samples": seen, "opening": opened - began, "opening MB": after_opening - before,
                  "walking": walked - opened, "walking MB": peak_mib() - before}))
"""


def run() -> list[dict[str, object]]:
    with tempfile.TemporaryDirectory() as scratch:
        large, small = Path(scratch) / "large", Path(scratch) / "small"
        write_sparse(large)
        rows = [
            *_opening_rows(large, "every sample", {}),
            *_opening_rows(large, "the split train", {"scheme": "default", "split": "train"}),
        ]
        rows += _scaling_rows("order and index lookup of an epoch", LOOKUPS, _lookup(large))
        write_dataset(
            small, map(_sample, range(max(READS))), stem="circular", fields=FIELDS, splits={}, seed=0, provenance={},
            shard_bytes=READ_SHARD_BYTES,
        )  # fmt: skip
        rows += _scaling_rows("reading an epoch, 16 x 16 uint8, later epochs of a process", READS, _read(small))
    return rows


def _sample(number: int) -> Sample:
    image = np.random.default_rng(number).integers(0, 255, READ_SHAPE, dtype=np.uint8)
    return Sample(f"cell{number:07d}", f"track{number // GROUP_SAMPLES}", {"image": image})


def write_sparse(folder: Path) -> Manifest:
    """Write manifest and index of `SAMPLES` samples in `SHARDS` shards, and none of the shards."""
    write_dataset(folder, map(_sample, range(2)), stem="circular", fields=FIELDS, splits={}, seed=0, provenance={})
    tiny = Manifest.read(folder)
    for path in folder.glob("*.h5"):
        path.unlink()
    rows = SAMPLES // SHARDS
    group = np.repeat(np.arange(SAMPLES // GROUP_SAMPLES, dtype=np.int32), GROUP_SAMPLES)
    group_name = np.array([f"track{number}".encode() for number in range(SAMPLES // GROUP_SAMPLES)])
    codes = draw_splits(group_name[group], SCHEME, seed=0, name="default")
    index = Index(
        sample_id=np.array([f"cell{number:07d}".encode() for number in range(SAMPLES)]),
        group=group,
        group_name=group_name,
        shard=np.repeat(np.arange(SHARDS, dtype=np.int32), rows),
        row=np.tile(np.arange(rows, dtype=np.int32), SHARDS),
        splits={"default": codes},
    )
    root = {
        "format": FORMAT_NAME,
        "schema_version": SCHEMA_VERSION,
        "stem": tiny.stem,
        "dataset": tiny.dataset,
        "identity": tiny.identity,
    }
    path = folder / "index.h5"
    write_index(path, index, root=root)
    content = path.read_bytes()
    manifest = dataclasses.replace(
        tiny,
        counts={"samples": SAMPLES, "groups": len(group_name), "shards": SHARDS},
        splits={"default": SCHEME | {"seed": 0} | split_counts(codes, group)},
        index={"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()},
        shards=[
            {"name": shard_name(n), "samples": rows, "bytes": 2**26, "sha256": hashlib.sha256(bytes(n)).hexdigest()}
            for n in range(SHARDS)
        ],
    )
    manifest.write(folder)
    return manifest


def _opening_rows(folder: Path, which: str, arguments: dict[str, str]) -> list[dict[str, object]]:
    command = [sys.executable, "-c", PROBE, str(folder), json.dumps(arguments)]
    found = [
        json.loads(subprocess.run(command, cwd=ROOT, check=True, text=True, capture_output=True).stdout)
        for _ in range(ROUNDS)
    ]
    middle = {name: statistics.median(one[name] for one in found) for name in found[0]}
    return [
        {"what": f"opening {SAMPLES:,} samples in {SHARDS:,} shards: {which}", "samples": middle["samples"]}
        | {"s": middle["opening"], "goal s": GOAL_SECONDS, "MB": middle["opening MB"], "goal MB": GOAL_MB},
        {"what": "and walking through an epoch's batches of 32", "samples": middle["samples"]}
        | {"s": middle["walking"], "MB": middle["walking MB"]},
    ]


def _scaling_rows(what: str, sizes: tuple[int, ...], epoch: Callable[[int], None]) -> list[dict[str, object]]:
    """A row per size and one for the fits; the sizes take turns, the median of the rounds counts."""
    seconds: dict[int, list[float]] = {size: [] for size in sizes}
    for _ in range(ROUNDS):
        for size in sizes:
            began = time.perf_counter()
            epoch(size)
            seconds[size].append(time.perf_counter() - began)
    middle = np.array([statistics.median(seconds[size]) for size in sizes])
    rows: list[dict[str, object]] = [
        {"what": what, "samples": size, "s": float(value), "us/sample": float(value / size * 1e6)}
        for size, value in zip(sizes, middle, strict=True)
    ]
    return [*rows, {"what": f"{what}: fit"} | fit(np.array(sizes, float), middle)]


def fit(sizes: np.ndarray, seconds: np.ndarray) -> dict[str, Any]:
    """Least squares: slope and R2 of seconds over samples, and the exponent of the line through their logarithms."""
    slope, constant = np.polyfit(sizes, seconds, 1)
    rest = seconds - (slope * sizes + constant)
    exponent = np.polyfit(np.log(sizes), np.log(seconds), 1)[0]
    return {
        "us/sample": float(slope * 1e6),
        "exponent": float(exponent),
        "R2": float(1 - np.sum(rest**2) / np.sum((seconds - seconds.mean()) ** 2)),
    }


def _lookup(folder: Path) -> Callable[[int], None]:
    index = read_index(folder, Manifest.read(folder))

    def epoch(samples: int) -> None:
        for batch in EpochBatchSampler(samples, batch_size=BATCH, seed=0, shuffle=True):
            chosen = np.array([position for _, position in batch])
            places = index.shard[chosen], index.row[chosen]
            assert len(places[0]) == len(batch)

    return epoch


def _read(folder: Path) -> Callable[[int], None]:
    dataset = ShardDataset(folder)

    def epoch(samples: int) -> None:
        for batch in EpochBatchSampler(samples, batch_size=BATCH, seed=0, shuffle=True):
            dataset.__getitems__([position for _, position in batch])

    for number in range(0, len(dataset), BATCH):  # the first epoch compares checksums
        dataset.__getitems__(range(number, min(number + BATCH, len(dataset))))
    return epoch
