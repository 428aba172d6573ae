"""Figures of the paper `dl_tfm`: displacement and traction as heat maps with arrows."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure


def traction_panel(
    pixel_size_um: np.ndarray,
    cell_mask: np.ndarray,
    displacement_px: np.ndarray,
    true_pa: np.ndarray,
    predicted_pa: np.ndarray,
    *,
    sample_ids: Sequence[str],
) -> Figure:
    """Draw displacement, true and predicted traction of a few fields, one per row."""
    rows = len(displacement_px)
    figure = Figure(figsize=(9, 3 * rows), layout="constrained")
    axes = figure.subplots(rows, 3, squeeze=False)
    for row in range(rows):
        for column, (name, field) in enumerate(
            (("displacement (px)", displacement_px), ("true traction (Pa)", true_pa), ("predicted (Pa)", predicted_pa))
        ):
            image = axes[row, column].imshow(np.hypot(*field[row]))
            axes[row, column].set_title(name)
            figure.colorbar(image, ax=axes[row, column])
    return figure
