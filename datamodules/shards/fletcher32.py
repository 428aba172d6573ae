"""The fletcher32 checksum that HDF5 stores behind every chunk, for reading chunks without HDF5.

HDF5 adds up the 16-bit big-endian words of a chunk and the running sums of them, both modulo 65535 (HDF5 File Format
Specification 3.0, filter 3; `H5_checksum_fletcher32`). Here both sums come from the row and column sums of a table of
the words, which BLAS makes at memory speed and exactly: 128 words sum to less than 2^24, so every partial sum is a
float32. Words are taken in little-endian order: modulo 65535 swapping the bytes of a word is multiplying it by 256,
so once at the end does.
"""

from __future__ import annotations

import threading

import numpy as np
from numpy.typing import NDArray

MODULUS = 65535
_SIDE = 128
_ROWS = 1024
"""Rows of the table: 256 KiB of data at a time, in a second-level cache."""
_ONES = np.ones(_SIDE, np.float32)
_PLACES = np.arange(_SIDE, dtype=np.float64)
_ONES_AND_PLACES = np.stack([np.ones(_ROWS), np.arange(_ROWS)], axis=1)


class _Scratch(threading.local):
    """The table of this thread: allocating it for every chunk would cost more than the sums."""

    def __init__(self) -> None:
        self.table = np.empty((_ROWS, _SIDE), np.float32)


_scratch = _Scratch()


def fletcher32(data: NDArray[np.uint8]) -> tuple[int, int]:
    """Return the two sums of the checksum, each in [0, 65535).

    Args:
        data: (n,) the bytes of a chunk, contiguous; n may be odd.
    """
    words = data[: len(data) // 2 * 2].view("<u2")
    total = weighted = 0  # sums over the words w_i of w_i and of i w_i
    for start in range(0, len(words), _ROWS * _SIDE):
        part_total, part_weighted = _sums(words[start : start + _ROWS * _SIDE])
        total += part_total
        weighted += start * part_total + part_weighted
    count = len(words)
    if len(data) % 2:  # the missing low byte of the last big-endian word is 0
        last = int(data[-1])
        total, weighted, count = total + last, weighted + count * last, count + 1
    # word i is in all running sums from its own on: count - i of them
    return total * 256 % MODULUS, (count * total - weighted) * 256 % MODULUS


def matches(data: NDArray[np.uint8], stored: int) -> bool:
    """Whether `stored`, the little-endian 32-bit integer behind a chunk, is the checksum of its bytes `data`."""
    first, second = fletcher32(data)
    # HDF5 writes 65535 where a sum is a multiple of it but not 0
    return first == (stored & 0xFFFF) % MODULUS and second == (stored >> 16) % MODULUS


def _sums(words: NDArray[np.uint16]) -> tuple[int, int]:
    """Sums of the words w_i and of i w_i of at most one table."""
    rows = len(words) // _SIDE
    total = weighted = 0.0
    if rows:
        table = _scratch.table[:rows]
        np.copyto(table, words[: rows * _SIDE].reshape(rows, _SIDE))
        total, by_row = ((table @ _ONES).astype(np.float64) @ _ONES_AND_PLACES[:rows]).tolist()
        blocks, rest = divmod(rows, _SIDE)
        by_column = (_ONES @ table[: blocks * _SIDE].reshape(blocks, _SIDE, _SIDE)).astype(np.float64)
        weighted = _SIDE * by_row + float((by_column @ _PLACES).sum())
        if rest:
            weighted += float((_ONES[:rest] @ table[blocks * _SIDE :]).astype(np.float64) @ _PLACES)
    tail = words[rows * _SIDE :].astype(np.float64)
    if len(tail):
        tail_total = float(tail.sum())
        total += tail_total
        weighted += rows * _SIDE * tail_total + float(tail @ _PLACES[: len(tail)])
    return int(total), int(weighted)
