"""Reads damaged data sets for `faults`, each in a process of its own: a crash or a hang is a result, not the end.

Run as a program it takes one line of JSON per data set on standard input and answers each with another. It forks per
data set from a process that has imported everything and opened nothing, so no case sees what another left behind.
"""

from __future__ import annotations

import json
import os
import resource
import select
import signal
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from datamodules.batches import Sample
from datamodules.shards.reader import ShardDataset
from datamodules.shards.schema import Manifest, ShardError
from datamodules.shards.verify import NOTE, verify_dataset
from datamodules.shards.writer import write_dataset

COUNT, ROWS, SHAPE = 24, 8, (1, 16, 16)
FIELDS = {"image": {"axes": "cyx", "unit": "grey level"}, "angle_rad": {"axes": "", "unit": "rad"}}
SCHEMES = {
    "default": {"unit": "group", "train": 0.5, "val": 0.25, "test": 0.25},
    "by_sample": {"unit": "sample", "train": 0.5, "test": 0.5},
}
CASE_SECONDS = 20.0
MEMORY_BYTES = 4 * 2**30
"""What one case may allocate: enough to read the data set many times, far less than a bomb claims."""
BATCH = 5


def sample(number: int) -> Sample:
    image = np.random.default_rng(number).uniform(0, 255, SHAPE).astype(np.float32)
    return Sample(
        f"cell{number:02d}", f"track{number // 2}", {"image": image, "angle_rad": np.float32(number % 24 / 4)}
    )


def write(folder: Path) -> None:
    """Write the data set that gets damaged: 24 samples in 3 shards."""
    rows_bytes = ROWS * (int(np.prod(SHAPE)) * 4 + 4)
    described: dict[str, Any] = {"fields": FIELDS, "splits": SCHEMES, "seed": 0, "provenance": {"made_by": "test"}}
    write_dataset(folder, map(sample, range(COUNT)), stem="circular", shard_bytes=rows_bytes, **described)
    assert Manifest.read(folder).counts == {"samples": COUNT, "groups": COUNT // 2, "shards": COUNT // ROWS}


def splits_of(folder: Path) -> dict[tuple[str, str], list[int]]:
    return {
        (name, split): ShardDataset(folder, scheme=name, split=split).indices.tolist()
        for name, scheme in SCHEMES.items()
        for split in ("train", "val", "test")
        if split in scheme
    }


def read_twice(folder: Path, manifest: Manifest | None, splits: dict[tuple[str, str], list[int]]) -> dict[str, Any]:
    """Read everything that a data set can give and compare it with what was written.

    Args:
        folder: Of the damaged data set.
        manifest: As written; None when a forger has put another in its place.
        splits: As written.

    Returns:
        {`wrong`: what differs, `messages`: of the ShardErrors}; both empty when the damage does no harm.
    """
    wrong: list[str] = []
    messages: list[str] = []
    try:
        dataset = ShardDataset(folder)
        if manifest is not None and dataset.manifest != manifest:
            wrong.append("the manifest")
        if len(dataset) != COUNT:
            wrong.append(f"{len(dataset)} samples")
        if splits_of(folder) != splits:
            wrong.append("a split")
    except (ShardError, FileNotFoundError) as error:
        return {"wrong": wrong, "messages": [str(error)]}
    # one by one, so that a refused sample does not hide the others; then in batches, of chunks already trusted
    single = [[number] for number in range(COUNT)]
    for chosen in [*single, *(list(range(start, min(start + BATCH, COUNT))) for start in range(0, COUNT, BATCH))]:
        try:
            found = dataset.__getitems__(chosen)
        except ShardError as error:
            messages.append(str(error))
            continue
        wrong += [f"sample {n}" for n, one in zip(chosen, found, strict=True) if not _equal(one, sample(n))]
    return {"wrong": wrong, "messages": messages}


def _equal(found: Sample, truth: Sample) -> bool:
    return (
        (found.sample_id, found.group) == (truth.sample_id, truth.group)
        and found.fields.keys() == truth.fields.keys()
        and all(
            found.fields[name].dtype == truth.fields[name].dtype
            and np.array_equal(found.fields[name], truth.fields[name])
            for name in truth.fields
        )
    )


def isolated(steps: Callable[[], Iterator[Any]], *, seconds: float = CASE_SECONDS) -> tuple[list[Any], str]:
    """Run `steps` in a fork and collect what it yields, up to its end, its death or the time limit.

    Args:
        steps: Yields values that JSON can hold.
        seconds: Time limit.

    Returns:
        The values, and how the process failed: empty, `hang` or, for example, `signal 11`.
    """
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        _run_steps(steps, writing)
    os.close(writing)
    content, ends, hung = b"", time.monotonic() + seconds, False
    while True:
        ready, _, _ = select.select([reading], [], [], max(0.0, ends - time.monotonic()))
        if not ready:
            hung = True
            os.kill(child, signal.SIGKILL)
            break
        block = os.read(reading, 65536)
        if not block:
            break
        content += block
    os.close(reading)
    _, status = os.waitpid(child, 0)
    complete = content[: content.rfind(b"\n") + 1].splitlines()
    failure = "hang" if hung else f"signal {os.WTERMSIG(status)}" if os.WIFSIGNALED(status) else ""
    return [json.loads(line) for line in complete], failure


def _run_steps(steps: Callable[[], Iterator[Any]], writing: int) -> None:
    """Never returns: what lies above on the stack belongs to the parent."""
    try:
        resource.setrlimit(resource.RLIMIT_DATA, (MEMORY_BYTES, MEMORY_BYTES))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        with os.fdopen(writing, "w") as stream:
            for value in steps():
                stream.write(json.dumps(value) + "\n")
                stream.flush()
    finally:
        os._exit(0)


def examine(folder: Path, manifest: Manifest | None, splits: dict[tuple[str, str], list[int]]) -> dict[str, Any]:
    """Read and verify one data set in a fork: {`failure`, `wrong`, `messages`, `verify`}."""

    def steps() -> Iterator[dict[str, Any]]:
        for work in (
            lambda: read_twice(folder, manifest, splits),
            lambda: {"verify": [line for line in verify_dataset(folder) if not line.startswith(NOTE)]},
        ):
            try:
                yield work()
            except Exception as error:  # any other exception than ours counts as a crash
                yield {"failure": f"{type(error).__name__}: {error}"}

    found, failure = isolated(steps)
    answer: dict[str, Any] = {"failure": failure, "wrong": [], "messages": [], "verify": []}
    for part in found:
        answer |= part
    if len(found) < 2 and not answer["failure"]:
        answer["failure"] = "ended early"
    return answer


def main(pristine: Path) -> None:
    manifest, splits = Manifest.read(pristine), splits_of(pristine)
    for line in sys.stdin:
        request = json.loads(line)
        answer = examine(Path(request["folder"]), None if request["forged"] else manifest, splits)
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
