"""Named arrays of numbers in one file: MATLAB's .mat in all its versions, numpy's .npz and .npy.

MATLAB up to version 7 is read through scipy; version 7.3 is HDF5, which stores every array with its axes in reverse, so
it is turned back here: whatever the file, an array has the axes that MATLAB or numpy shows. Nothing is executed:
pickled objects, links and virtual or external data sets are refused.
"""

from __future__ import annotations

import struct
import zipfile
import zlib
from collections.abc import Iterable
from pathlib import Path

import h5py
import numpy as np
import scipy.io
from numpy.typing import NDArray
from scipy.io.matlab import MatReadError

SUFFIXES = (".mat", ".npz")
"""Files that hold several arrays."""

_DAMAGE: tuple[type[Exception], ...] = (
    OSError,
    ValueError,
    TypeError,
    KeyError,
    IndexError,
    EOFError,
    NotImplementedError,
    RuntimeError,
)
_DAMAGE += (OverflowError, struct.error, zlib.error, zipfile.BadZipFile, MatReadError)


def array_names(path: Path) -> set[str]:
    """Return the names of what a .mat or .npz file holds, without reading it; ValueError where it is damaged."""
    try:
        if path.suffix.lower() == ".npz":
            with path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
                return set(arrays.files)
        if h5py.is_hdf5(path):
            with h5py.File(path, "r") as file:
                return set(file)
        return {name for name, _, _ in scipy.io.whosmat(str(path))}
    except _DAMAGE as error:
        raise _damaged(path, error) from error


def read_arrays(path: Path, names: Iterable[str]) -> dict[str, NDArray[np.float64]]:
    """Return those of the arrays `names` that a .mat or .npz file holds, as float64; truth values become 0 and 1.

    Raises ValueError, with the file's name, where it is damaged or an array does not hold real numbers, all finite.
    """
    wanted = list(names)
    try:
        if path.suffix.lower() == ".npz":
            with path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
                found = {name: arrays[name] for name in wanted if name in arrays.files}
        elif h5py.is_hdf5(path):
            found = _from_hdf5(path, wanted)
        else:
            stored = scipy.io.loadmat(str(path), variable_names=wanted)
            found = {name: stored[name] for name in wanted if name in stored}
    except _DAMAGE as error:
        raise _damaged(path, error) from error
    return {name: _numbers(f"{name} in {path}", array) for name, array in found.items()}


def read_npy(path: Path) -> NDArray[np.float64]:
    """Return the array in a .npy file as float64; ValueError as `read_arrays` raises it."""
    try:
        with path.open("rb") as file:
            array = np.load(file, allow_pickle=False)
    except _DAMAGE as error:
        raise _damaged(path, error) from error
    return _numbers(str(path), array)


def _from_hdf5(path: Path, names: list[str]) -> dict[str, np.ndarray]:
    found = {}
    with h5py.File(path, "r") as file:
        for name in names:
            if name not in file:
                continue
            dataset = file[name]
            hard = isinstance(file.get(name, getlink=True), h5py.HardLink)
            if not hard or not isinstance(dataset, h5py.Dataset) or dataset.external or dataset.is_virtual:
                raise ValueError(f"{name} is no plain array")
            found[name] = dataset[()].T
    return found


def _numbers(what: str, array: np.ndarray) -> NDArray[np.float64]:
    if not isinstance(array, np.ndarray) or array.dtype.kind not in "fiub":
        kind = getattr(array, "dtype", type(array).__name__)
        raise ValueError(f"{what} must hold real numbers, it is {kind}: save it as an array of doubles")
    values = array.astype(np.float64)
    if not np.isfinite(values).all():
        bad = int(np.count_nonzero(~np.isfinite(values)))
        where = tuple(int(i) for i in np.argwhere(~np.isfinite(values))[0])
        raise ValueError(
            f"{what} has {bad} values that are NaN or infinite, the first at {where} counted from 0: fill them in, for "
            "example from their neighbours, or leave the file out"
        )
    return values


def _damaged(path: Path, error: BaseException) -> ValueError:
    if not path.is_file():
        return ValueError(f"there is no file {path}")
    said = str(error).splitlines()[0] if str(error) else type(error).__name__
    return ValueError(f"{path} cannot be read, it is damaged or no {path.suffix} file ({said}): fetch or save it again")
