"""The eight symmetries of a square grid, for vector fields: pixels and components move together, exactly.

Elasticity on an isotropic substrate has all of them, so a pair of traction and displacement moved by one of them is
another pair. Fields are (..., 2, y, x) with components (x, y), x to the right, y down the rows.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray


class GridSymmetry(NamedTuple):
    """First the exchange of the axes, then the mirrors."""

    transposed: bool
    mirrored_x: bool
    mirrored_y: bool

    @classmethod
    def draw(cls, *, square: bool = True, seed: int, epoch: int, index: int) -> GridSymmetry:
        """One of the eight, the same for equal arguments; of the four mirrors where the grid is not square."""
        code = int(np.random.default_rng([seed, epoch, index, 8]).integers(8))
        return cls(square and bool(code & 1), bool(code & 2), bool(code & 4))

    def move_vectors(self, field: NDArray[np.floating]) -> NDArray[np.floating]:
        """Move a vector field (..., 2, y, x); a field that is not square changes its shape when transposed."""
        moved = self.move_pixels(field)
        if self.transposed:
            moved = moved[..., ::-1, :, :]
        sign = np.array([-1 if self.mirrored_x else 1, -1 if self.mirrored_y else 1], field.dtype)
        return moved * sign[:, None, None]

    def move_pixels(self, field: NDArray[np.generic]) -> NDArray[np.generic]:
        """Move the pixels of (..., y, x), a mask or one component, without touching the values; a view."""
        if self.transposed:
            field = field.swapaxes(-1, -2)
        return field[..., :: -1 if self.mirrored_y else 1, :: -1 if self.mirrored_x else 1]
