"""Error of an oracle that knows where every stress is and where it points, and fits its strength to the noise."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from physics.half_space import green_tensor_space

Floats = NDArray[np.floating]


def fitted_error(responses: Floats, weights: Floats, traction_pa: Floats, noise_um: float) -> float:
    """Root of sigma^2 tr (A^T A)^-1 over |T|: what least squares over all strengths leave of white noise.

    Args:
        responses: displacement in um by each of n stresses at its true strength or at 1 Pa, (n, 2, y, x).
        weights: sum of squares of the traction in Pa that each response belongs to, (n,).
        traction_pa: all stresses together, (2, y, x).
        noise_um: standard deviation of the noise per component.

    """
    matrix = responses.reshape(len(responses), -1)
    spread = noise_um**2 * np.diag(np.linalg.inv(matrix @ matrix.T))
    return float(np.sqrt((spread * weights).sum() / (traction_pa**2).sum()))


def pixel_responses(
    rows: NDArray[np.integer],
    columns: NDArray[np.integer],
    directions: Floats,
    *,
    size_px: int,
    reach: str,
    **substrate: Any,
) -> Floats:
    """Displacement (n, 2, size_px, size_px) in um by each of n pixels alone, 1 Pa along `directions` (2, n) on it.

    Cut out of one kernel, which spares a transform of every pixel's field. `reach` and `substrate` are as in
    `physics.half_space`, with an open boundary.
    """
    xx, xy, yy = green_tensor_space(size_px - 1, size_px - 1, **substrate).numpy()
    kernel = np.stack((np.stack((xx, xy)), np.stack((xy, yy))))  # direction, component, offsets along y and x
    if reach == "published":
        near = np.abs(np.arange(1 - size_px, size_px)) <= size_px // 2 - 1
        kernel *= near[:, None] & near
    responses = np.empty((len(rows), 2, size_px, size_px))
    for response, row, column, direction in zip(responses, rows, columns, directions.T, strict=True):
        first_y, first_x = size_px - 1 - row, size_px - 1 - column
        window = kernel[..., first_y : first_y + size_px, first_x : first_x + size_px]
        np.add(direction[0] * window[0], direction[1] * window[1], out=response)
    return responses
