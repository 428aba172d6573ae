"""The checksum of chunks: against its definition and against what HDF5 writes."""

from __future__ import annotations

from pathlib import Path

import h5py
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from datamodules.shards.fletcher32 import MODULUS, fletcher32, matches


def by_definition(data: bytes) -> tuple[int, int]:
    padded = data + b"\0" * (len(data) % 2)
    words = [int.from_bytes(padded[i : i + 2], "big") for i in range(0, len(padded), 2)]
    first = second = 0
    for word in words:
        first = (first + word) % MODULUS
        second = (second + first) % MODULUS
    return first, second


@given(st.binary(max_size=3000))
@settings(deadline=None, max_examples=80)
def test_equals_the_definition(data: bytes) -> None:
    assert fletcher32(np.frombuffer(data, np.uint8)) == by_definition(data)


@pytest.mark.parametrize("size", [65536, 65537, 262144, 262151, 2**20 + 2**18 + 3, 3 * 2**20 + 1])
@pytest.mark.parametrize("fill", ["random", "ones"])
def test_equals_the_definition_where_tables_and_segments_meet(size: int, fill: str) -> None:
    data = np.random.default_rng(size).integers(0, 256, size, dtype=np.uint8)
    if fill == "ones":
        data[:] = 255
    assert fletcher32(data) == by_definition(data.tobytes())


@pytest.mark.parametrize("shape", [(1,), (3,), (5, 7), (1, 64, 65), (2, 104, 104), (1, 256, 256)])
@pytest.mark.parametrize("kind", ["random", "zero", "full"])
def test_equals_what_hdf5_stores(tmp_path: Path, shape: tuple[int, ...], kind: str) -> None:
    values = np.random.default_rng(0).integers(0, 256, (2, *shape), dtype=np.uint8)
    values[:] = {"random": values, "zero": 0, "full": 255}[kind]
    with h5py.File(tmp_path / "a.h5", "w") as file:
        dataset = file.create_dataset("x", data=values, chunks=(1, *shape), fletcher32=True)
        for row in range(2):
            _, chunk = dataset.id.read_direct_chunk((row, *(0,) * len(shape)))
            data, stored = np.frombuffer(chunk[:-4], np.uint8), int.from_bytes(chunk[-4:], "little")
            assert data.tobytes() == values[row].tobytes()
            assert matches(data, stored)


@given(st.binary(min_size=1, max_size=600), st.data())
@settings(deadline=None, max_examples=60)
def test_one_flipped_bit_is_noticed(data: bytes, draw: st.DataObject) -> None:
    original = np.frombuffer(data, np.uint8)
    first, second = fletcher32(original)
    damaged = original.copy()
    damaged[draw.draw(st.integers(0, len(data) - 1))] ^= 1 << draw.draw(st.integers(0, 7))
    assert matches(original, second << 16 | first)
    assert not matches(damaged, second << 16 | first)
