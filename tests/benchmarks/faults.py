"""The fault tally: damaged, truncated and forged data sets, and what reading and `verify` make of each.

A row per kind of damage. Every case is opened and read completely, twice (the second time in batches, of chunks whose
checksum the process has already compared), in a process of its own, and verified. `harmless when read`: the damage
lies in bytes that reading does not use, and every value, id, group, split and manifest entry came back as written.
`wrong value`, `crash or hang` and `unnamed` (an error that does not name the damaged file) must be 0; `caught by
verify`, which counts lines that name the file, must be all.
"""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from shutil import copytree, rmtree
from typing import Any, NamedTuple

import h5py
import numpy as np

from datamodules.shards.schema import Field, Manifest
from datamodules.shards.writer import write_dataset
from tests.benchmarks import _fault_reader as reader
from tests.datamodules.test_shards_damage import LIBRARY, replace_image, reseal

ROOT = Path(__file__).resolve().parents[2]
FLIPS = 1000
TRUNCATIONS = 200
SEED = 0
COLUMNS = (
    "tried",
    "caught by reading",
    "harmless when read",
    "wrong value",
    "crash or hang",
    "unnamed",
    "caught by verify",
)
FIRST, SECOND = "00000.h5", "00001.h5"
ALL_SHARDS = frozenset(f"{number:05d}.h5" for number in range(reader.COUNT // reader.ROWS))
STORED_SHAPE = (reader.ROWS, *reader.SHAPE)


class Case(NamedTuple):
    kind: str
    """The row of the table."""
    damage: Callable[[Path], object]
    """Changes the data set in the folder."""
    files: frozenset[str]
    """The damaged files: every error must name one of them."""
    forged: bool = False
    """Somebody wrote a manifest to go with it: samples, ids, groups and splits are compared, the manifest is not."""


def run() -> list[dict[str, object]]:
    return tally([*random_cases(FLIPS, TRUNCATIONS, seed=SEED), *single_cases()])


def tally(cases: Iterable[Case]) -> list[dict[str, object]]:
    """Examine the cases; one row per kind, in the order in which the kinds appear."""
    rows: dict[str, dict[str, Any]] = {}
    for case, answer in examined(cases):
        row = rows.setdefault(case.kind, {"kind": case.kind} | dict.fromkeys(COLUMNS, 0))
        row["tried"] += 1
        row[outcome(answer)] += 1
        row["unnamed"] += not all(_names(case, message) for message in answer["messages"])
        row["caught by verify"] += any(_names(case, line) for line in answer["verify"])
    return list(rows.values())


def outcome(answer: dict[str, Any]) -> str:
    """Column of an answer of the reader; the worst that happened counts."""
    if answer["failure"]:
        return "crash or hang"
    if answer["wrong"]:
        return "wrong value"
    return "caught by reading" if answer["messages"] else "harmless when read"


def _names(case: Case, message: str) -> bool:
    return any(name in message for name in case.files)


def examined(cases: Iterable[Case]) -> Iterator[tuple[Case, dict[str, Any]]]:
    """Damage a fresh copy for every case and let the reader answer."""
    with tempfile.TemporaryDirectory() as scratch:
        pristine = Path(scratch) / "pristine" / "twin"
        reader.write(pristine)
        with _reader_process(pristine) as process:
            assert process.stdin is not None
            assert process.stdout is not None
            for case in cases:
                folder = Path(scratch) / "data" / "twin"
                copytree(pristine, folder)
                case.damage(folder)
                process.stdin.write(json.dumps({"folder": str(folder), "forged": case.forged}) + "\n")
                process.stdin.flush()
                line = process.stdout.readline()
                if not line:
                    raise RuntimeError(f"the reading process ended with code {process.wait()} at a case {case.kind!r}")
                yield case, json.loads(line)
                rmtree(folder.parent)


@contextmanager
def _reader_process(pristine: Path) -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, "-m", "tests.benchmarks._fault_reader", str(pristine)]
    process = subprocess.Popen(command, cwd=ROOT, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    with process:
        try:
            yield process
        finally:
            process.kill()


# -- accidents --------------------------------------------------------------------------------------------------------


def random_cases(flips: int, truncations: int, *, seed: int) -> Iterator[Case]:
    """Flipped bytes and truncations: the file is drawn first, so that the small ones get their share."""
    rng = np.random.default_rng(seed)
    names = ["manifest.json", "index.h5", *sorted(ALL_SHARDS)]
    for _ in range(flips):
        name = names[rng.integers(len(names))]
        label = "a shard" if name in ALL_SHARDS else name
        yield Case(f"byte flip in {label}", _flip(name, rng.random(), int(rng.integers(1, 256))), frozenset([name]))
    for _ in range(truncations):
        name = names[rng.integers(len(names))]
        yield Case("truncation", _truncate(name, rng.random()), frozenset([name]))


def _flip(name: str, where: float, mask: int) -> Callable[[Path], object]:
    def damage(folder: Path) -> None:
        content = bytearray((folder / name).read_bytes())
        content[int(where * len(content))] ^= mask
        (folder / name).write_bytes(content)

    return damage


def _truncate(name: str, share: float) -> Callable[[Path], object]:
    def damage(folder: Path) -> None:
        content = (folder / name).read_bytes()
        (folder / name).write_bytes(content[: int(share * len(content))])

    return damage


# -- forgeries: manifest and checksums of the changed files are made to agree -----------------------------------------


def single_cases() -> Iterator[Case]:
    """One of each way to point reading elsewhere, to lie about a type, or to ask for all of the memory."""
    first = frozenset([FIRST])
    for kind, make in {
        "external link": lambda file, folder: file.__setitem__("image", h5py.ExternalLink("00001.h5", "/image")),
        "soft link": lambda file, folder: file.__setitem__("image", h5py.SoftLink("/angle_rad")),
        "external storage": _external_storage,
        "virtual dataset": _virtual,
        "wrong dtype (float64)": lambda file, folder: _plain(file, "<f8"),
        "wrong byte order": lambda file, folder: _plain(file, ">f4"),
        "bomb: a tiny file claims 32 TB": _claims_terabytes,
    }.items():
        yield Case(kind, _forged(make), first, forged=True)
    yield Case(
        "bomb: shards and manifest claim 86 GB, nothing stored",
        lambda folder: _bomb(folder, b""),
        ALL_SHARDS,
        forged=True,
    )
    yield Case("bomb: lzf, 86 GB in 64 bytes a row", lambda folder: _bomb(folder, b"\0" * 64), ALL_SHARDS, forged=True)
    yield Case("symbolic link out of the folder", lambda folder: _link(folder, folder.parent / "elsewhere.h5"), first)
    yield Case("symbolic link within the folder", lambda folder: _link(folder, folder / "copy.bin"), first)
    yield Case("swapped shards", _swap, frozenset([FIRST, SECOND]))
    yield Case("missing shard", lambda folder: (folder / FIRST).unlink(), first)
    yield Case("shard of another data set", _foreign, first)
    yield Case("edited manifest", _edit, frozenset(["manifest.json"]))


def _forged(make: Callable[[h5py.File, Path], object]) -> Callable[[Path], object]:
    return lambda folder: replace_image(folder, lambda file: make(file, folder))


def _plain(file: h5py.File, dtype: str) -> None:
    data = np.stack([reader.sample(n).fields["image"] for n in range(reader.ROWS)])
    file.create_dataset("image", data=data, dtype=dtype, chunks=(1, *reader.SHAPE), fletcher32=True)


def _external_storage(file: h5py.File, folder: Path) -> None:
    secret = folder.parent / "secret.bin"
    secret.write_bytes(b"TOPSECRET" * 1000)
    file.create_dataset("image", STORED_SHAPE, "float32", external=[(str(secret), 0, int(np.prod(STORED_SHAPE)) * 4)])


def _virtual(file: h5py.File, folder: Path) -> None:
    layout = h5py.VirtualLayout(STORED_SHAPE, "float32")
    layout[:] = h5py.VirtualSource("00001.h5", "image", STORED_SHAPE)
    file.create_virtual_dataset("image", layout)


def _claims_terabytes(file: h5py.File, folder: Path) -> None:
    shape = (reader.ROWS, 1, 10**6, 10**6)
    file.create_dataset("image", shape, "float32", chunks=(1, 1, 20000, 20000), fletcher32=True, compression="lzf")


def _bomb(folder: Path, stored: bytes) -> None:
    shape = (1, 30000, 30000)
    for name in ALL_SHARDS:
        with h5py.File(folder / name, "r+", libver=LIBRARY) as file:
            del file["image"]
            image = file.create_dataset(
                "image", (reader.ROWS, *shape), "float32", chunks=(1, *shape), fletcher32=True, compression="lzf"
            )
            for row in range(reader.ROWS if stored else 0):
                image.id.write_direct_chunk((row, 0, 0, 0), stored)
    fields = {**Manifest.read(folder).fields, "image": Field(shape, "float32", "grey level", "cyx")}
    reseal(folder, fields=fields)


def _link(folder: Path, target: Path) -> None:
    (folder / FIRST).rename(target)
    (folder / FIRST).symlink_to(target)


def _swap(folder: Path) -> None:
    first, second, between = folder / FIRST, folder / SECOND, folder / "between"
    first.rename(between)
    second.rename(first)
    between.rename(second)


def _foreign(folder: Path) -> None:
    """A shard of the same name, shape and size of a data set that differs in its values only."""
    other = folder.parent / "other" / "twin"
    samples = (reader.sample(n + 50) for n in range(reader.COUNT))
    samples = (one._replace(sample_id=f"cell{n:02d}", group=f"track{n // 2}") for n, one in enumerate(samples))
    manifest = Manifest.read(folder)
    rows_bytes = reader.ROWS * sum(field.nbytes for field in manifest.fields.values())
    described: dict[str, Any] = {"fields": reader.FIELDS, "splits": reader.SCHEMES, "seed": 0}
    write_dataset(other, samples, stem="circular", provenance=manifest.provenance, shard_bytes=rows_bytes, **described)
    (folder / FIRST).write_bytes((other / FIRST).read_bytes())


def _edit(folder: Path) -> None:
    path = folder / "manifest.json"
    path.write_text(path.read_text().replace('"grey level"', '"electrons"'))


def forged_value(folder: Path) -> None:
    """Change one value and make every checksum agree: nothing can notice it, and the tally must call it wrong."""
    with h5py.File(folder / FIRST, "r+", libver=LIBRARY) as file:
        file["image"][3] += 1
    manifest = Manifest.read(folder)
    reseal(folder)
    assert dataclasses.replace(Manifest.read(folder), shards=manifest.shards) == manifest
