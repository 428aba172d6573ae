"""The stores that `shards` compares: how each is written, opened and read in random order.

A store is written from one array, (samples, channel, y, x) float32, and opened as an object whose `epoch(number)`
yields batches of 32 as float32 tensors and whose `close()` ends its workers. Stores with random access take their order
from `EpochBatchSampler` and their workers from torch's DataLoader with the same settings; a read that returns a batch
as one array (ours, np.memmap, zarr's `oindex`) becomes a tensor without another copy, a list of arrays is stacked.
WebDataset and LitData bring their own order and loader and are used as their documentation says.
"""

from __future__ import annotations

import contextlib
import importlib.util
import io
import os
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from shutil import rmtree
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import DataLoader, Dataset
from torch.utils.data.dataloader import _MultiProcessingDataLoaderIter

from datamodules.batches import Sample
from datamodules.shards.reader import ShardDataset
from datamodules.shards.sampler import EpochBatchSampler
from datamodules.shards.stacking import stack
from datamodules.shards.writer import write_dataset

BATCH = 32
TAR_BYTES = 64 * 2**20
SHUFFLE_SAMPLES = 1000
MEMORY_BYTES = 8 * 2**30
GROUP_SAMPLES = 10
RESIDENT_READS = 32

Array = NDArray[np.float32]
Reader = Callable[[Sequence[int]], Array | list[Array]]


class Loader(NamedTuple):
    epoch: Callable[[int], Iterator[torch.Tensor]]
    close: Callable[[], None]
    starting_s: float = 0.0
    """Time that the start of the workers took."""


class Store(NamedTuple):
    name: str
    write: Callable[[Path, Array], None]
    open: Callable[[Path, tuple[int, ...], int], Loader]
    """From folder, shape of the whole array and number of workers."""
    files: str
    """Folder of the store below the scratch folder; two stores may read the same files."""
    package: str | None = None
    """What must be importable beside the software itself."""
    mend: str = "pip install 'mechanolab[bench]'"
    note: str = ""

    def is_installed(self) -> bool:
        return self.package is None or importlib.util.find_spec(self.package) is not None


# -- random access ----------------------------------------------------------------------------------------------------


class Batches(Dataset[Any]):
    """A reader as a torch data set; it is made on first use in every process."""

    def __init__(self, make: Callable[[], Reader]) -> None:
        self._make = make
        self._reader: Reader | None = None
        self._process = 0

    def __getitems__(self, pairs: list[tuple[int, int]]) -> Array | list[Array]:
        if not pairs:
            return np.empty(0, np.float32)
        if self._reader is None or self._process != os.getpid():
            self._reader, self._process = self._make(), os.getpid()
        return self._reader([index for _, index in pairs])


def collate(batch: Array | list[Array]) -> torch.Tensor:
    return torch.from_numpy(batch if isinstance(batch, np.ndarray) else np.stack(batch))


class Order:
    """An `EpochBatchSampler` whose first epoch is an empty batch for every worker: they start, and read nothing."""

    def __init__(self, samples: int, workers: int) -> None:
        self.epochs = EpochBatchSampler(samples, batch_size=BATCH, seed=0, shuffle=True)
        self._first: list[list[tuple[int, int]]] = [[]] * workers

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        first, self._first = self._first, []
        yield from first or self.epochs


def open_reader(make: Callable[[], Reader], samples: int, workers: int) -> Loader:
    """Put a reader behind a DataLoader whose workers are already running."""
    order = Order(samples, workers)
    loader = DataLoader(
        Batches(make), batch_sampler=order, num_workers=workers, collate_fn=collate, persistent_workers=workers > 0
    )
    began = time.perf_counter()
    if workers:
        assert [len(batch) for batch in loader] == [0] * workers
    starting_s = time.perf_counter() - began

    def epoch(number: int) -> Iterator[torch.Tensor]:
        order.epochs.start_at(number, 0)
        yield from loader

    return Loader(epoch, partial(_stop_workers, loader), starting_s)


def _stop_workers(loader: DataLoader[Any]) -> None:
    """End persistent workers now: the next ones are forked from a process that knows nothing of them."""
    if isinstance(loader._iterator, _MultiProcessingDataLoaderIter):
        loader._iterator._shutdown_workers()
    loader._iterator = None


def write_ours(folder: Path, array: Array) -> None:
    samples = (Sample(f"s{n:06d}", f"g{n // GROUP_SAMPLES}", {"field": field}) for n, field in enumerate(array))
    fields = {"field": {"axes": "cyx", "unit": "1"}}
    write_dataset(folder / "set", samples, stem="benchmark", fields=fields, splits={}, seed=0, provenance={})


def open_ours(memory_bytes: int, folder: Path, shape: tuple[int, ...], workers: int) -> Loader:
    dataset = ShardDataset(folder / "set", memory_bytes=memory_bytes)
    loader = open_reader(lambda: lambda positions: stack(dataset.__getitems__(positions), "field"), shape[0], workers)

    def close() -> None:
        loader.close()
        dataset.close()

    return Loader(loader.epoch, close, loader.starting_s)


def write_memmap(folder: Path, array: Array) -> None:
    array.tofile(folder / "raw.bin")


def open_memmap(folder: Path, shape: tuple[int, ...], workers: int) -> Loader:
    def make() -> Reader:
        mapped = np.memmap(folder / "raw.bin", np.float32, "r", shape=shape)
        # asarray: the copies are plain arrays
        return lambda positions: np.asarray(mapped)[positions]

    return open_reader(make, shape[0], workers)


def write_npy(folder: Path, array: Array) -> None:
    for number, field in enumerate(array):
        np.save(folder / f"{number:06d}.npy", field)


def open_npy(folder: Path, shape: tuple[int, ...], workers: int) -> Loader:
    return open_reader(
        lambda: lambda positions: [np.load(folder / f"{n:06d}.npy") for n in positions], shape[0], workers
    )


def write_tiff(folder: Path, array: Array) -> None:
    import tifffile

    for number, field in enumerate(array):
        tifffile.imwrite(folder / f"{number:06d}.tif", field, photometric="minisblack")


def open_tiff(folder: Path, shape: tuple[int, ...], workers: int) -> Loader:
    import tifffile

    def read(positions: Sequence[int]) -> list[Array]:
        # tifffile drops an axis of length one
        return [tifffile.imread(folder / f"{n:06d}.tif").reshape(shape[1:]) for n in positions]

    return open_reader(lambda: read, shape[0], workers)


def write_zarr(compressors: str | None, folder: Path, array: Array) -> None:
    import zarr

    chunks = (1, *array.shape[1:])
    zarr.create_array(folder / "array.zarr", data=array, chunks=chunks, compressors=compressors)


def open_zarr(folder: Path, shape: tuple[int, ...], workers: int) -> Loader:
    def make() -> Reader:
        import zarr

        array = zarr.open_array(folder / "array.zarr", mode="r")
        return lambda positions: np.asarray(array.oindex[np.array(positions)])

    return open_reader(make, shape[0], workers)


# -- stores with an order and a loader of their own -------------------------------------------------------------------


def write_webdataset(folder: Path, array: Array) -> None:
    import webdataset

    with webdataset.ShardWriter(str(folder / "%05d.tar"), maxsize=TAR_BYTES, maxcount=10**9, verbose=0) as writer:
        for number, field in enumerate(array):
            writer.write({"__key__": f"{number:06d}", "npy": field})


def open_webdataset(folder: Path, shape: tuple[int, ...], workers: int) -> Loader:
    import webdataset

    urls = sorted(str(path) for path in folder.glob("*.tar"))
    samples = webdataset.WebDataset(urls, shardshuffle=len(urls), empty_check=False, seed=0)
    batches = samples.shuffle(SHUFFLE_SAMPLES).decode().to_tuple("npy").batched(BATCH, collation_fn=_collate_tuples)
    loader = webdataset.WebLoader(batches, batch_size=None, num_workers=workers, persistent_workers=workers > 0)
    return Loader(lambda number: iter(loader), partial(_stop_workers, loader.pipeline[0]))


def _collate_tuples(batch: list[tuple[Array]]) -> torch.Tensor:
    return collate([field for (field,) in batch])


def write_litdata(folder: Path, array: Array) -> None:
    import litdata

    raw = folder / "raw.bin"
    array.tofile(raw)
    # litdata empties these folders; by default they lie, under everyday names, in the folder for temporary files
    for variable in ("DATA_OPTIMIZER_CACHE_FOLDER", "DATA_OPTIMIZER_DATA_CACHE_FOLDER"):
        os.environ[variable] = str(folder / variable)
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        litdata.optimize(
            fn=partial(_litdata_sample, raw, array.shape),
            inputs=list(range(len(array))),
            output_dir=str(folder / "chunks"),
            chunk_bytes="64MB",
            num_workers=1,
            start_method="fork",
        )
    raw.unlink()
    for variable in ("DATA_OPTIMIZER_CACHE_FOLDER", "DATA_OPTIMIZER_DATA_CACHE_FOLDER"):
        rmtree(os.environ.pop(variable), ignore_errors=True)


def _litdata_sample(raw: Path, shape: tuple[int, ...], number: int) -> Array:
    return np.array(np.memmap(raw, np.float32, "r", shape=shape)[number])


def open_litdata(folder: Path, shape: tuple[int, ...], workers: int) -> Loader:
    import litdata

    # items one by one in full random order: by default a window of items is decoded for every item that is asked for
    dataset = litdata.StreamingDataset(
        str(folder / "chunks"), shuffle=True, drop_last=False, seed=0, batch_decode=0, item_shuffle_window=0
    )
    loader = litdata.StreamingDataLoader(
        dataset, batch_size=BATCH, num_workers=workers, collate_fn=collate, persistent_workers=workers > 0
    )
    return Loader(lambda number: iter(loader), partial(_stop_workers, loader))


# -- page cache -------------------------------------------------------------------------------------------------------


def empty_page_cache(folder: Path) -> None:
    """Drop the contents of files that lie on the disk from memory; names and inodes stay cached."""
    for path in (path for path in folder.rglob("*") if path.is_file()):
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        finally:
            os.close(descriptor)


def resident_share(folder: Path) -> float:
    """Share of random reads that need no disk: they are asked for with RWF_NOWAIT. NaN where that is not known."""
    rng = np.random.default_rng(0)
    paths = [path for path in sorted(folder.rglob("*")) if path.is_file() and path.stat().st_size > 2**15]
    found = 0
    for _ in range(RESIDENT_READS):
        path = paths[rng.integers(len(paths))]
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.preadv(descriptor, [bytearray(1)], int(rng.integers(path.stat().st_size)), os.RWF_NOWAIT)
            found += 1
        except BlockingIOError:
            pass
        except OSError:
            return float("nan")
        finally:
            os.close(descriptor)
    return found / RESIDENT_READS


REFERENCE = "np.memmap"
STORES = (
    Store("ours", write_ours, partial(open_ours, 0), "ours"),
    Store("ours, in memory", write_ours, partial(open_ours, MEMORY_BYTES), "ours", note="first epochs read it all"),
    Store(REFERENCE, write_memmap, open_memmap, "memmap", note="no checksum"),
    Store("one .npy per sample", write_npy, open_npy, "npy"),
    Store("TIFF, one per sample", write_tiff, open_tiff, "tiff"),
    Store("zarr v3, no codec", partial(write_zarr, None), open_zarr, "zarr", "zarr"),
    Store("zarr v3, its codec", partial(write_zarr, "auto"), open_zarr, "zarr_codec", "zarr"),
    Store(
        "WebDataset",
        write_webdataset,
        open_webdataset,
        "webdataset",
        "webdataset",
        note=f"no random access: shuffle buffer of {SHUFFLE_SAMPLES}; first epochs start the workers",
    ),
    Store(
        "LitData",
        write_litdata,
        open_litdata,
        "litdata",
        "litdata",
        note="its own shuffle and loader, batch_decode=0; first epochs start the workers",
    ),
)
