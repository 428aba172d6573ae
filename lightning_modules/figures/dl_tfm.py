"""Figures of the paper `dl_tfm`: tractions as maps, errors of methods against noise and against wrong operators.

Wang & Lin, bioRxiv 2020.05.20.107128 and Biophys J 120:3079 (2021): fields as heat maps with vectors (figures 2, 4, 5),
errors of every method at three noises, with and without cutoff (figure 3). Errors are `test/traction_nrmse`, inside the
outline, with their standard deviation over the fields.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from lightning_modules.figures import vector_maps
from lightning_modules.figures.method_panels import bars, dots, lines, stacked
from lightning_modules.figures.traction_methods import AS_MADE, methods_of, published_of_others

DISPLACEMENT_COLOURS, TRACTION_COLOURS, ERROR_COLOURS = "viridis", "inferno", "cividis"
MAP_INCHES, BAR_INCHES, BAR_SPACE_INCHES, GAP_INCHES = 2.6, 0.09, 0.58, 0.07
TITLE_INCHES, MARGIN_INCHES = 0.28, 0.3
BRIGHTEST_PERCENT = 99.5
"""Of the pixels: a few hot ones must not leave the others dark."""
LEAST_ERROR_SHARE = 0.1
"""Of the traction's largest colour: the error's colours are not stretched further."""
PREPRINT = (
    "Wang & Lin 2020, 28 cells, another measure of the error: the network 3.2 % without noise; a cutoff lowers its\n"
    "error by 43 % at .0188 px and by 64 % at .0375 px; with it below FTTC at λ = 0, 6e-10, 1e-9 and 3e-9 (p < .001)"
)
"""What figure 3's text states; its bars are not printed as numbers."""
SAMPLES_ON_SHEET = 12
SHEET_COLUMNS, SHEET_INCHES = 3, 1.55


# -- fields -----------------------------------------------------------------------------------------------------------


def traction_panel(
    pixel_size_um: np.ndarray,
    cell_mask: np.ndarray,
    displacement_px: np.ndarray,
    true_pa: np.ndarray,
    predicted_pa: np.ndarray,
    *,
    sample_ids: Sequence[str],
) -> Figure:
    """Draw displacement, true and predicted traction and the error of a few fields, one field per row.

    True and predicted traction of a field share their colours and the scale of their arrows. Where no truth is known
    (NaN), its map and that of the error are left out, of all rows when none of them has one.

    Args:
        pixel_size_um: (n,), distance between the points of each field.
        cell_mask: (n, y, x), bool.
        displacement_px: (n, 2, y, x) in pixels of the field's grid.
        true_pa: (n, 2, y, x) in Pa; NaN where unknown.
        predicted_pa: (n, 2, y, x) in Pa.
        sample_ids: n names.

    """
    known = np.isfinite(true_pa).all(axis=(1, 2, 3))
    unit, factor = _pressure_unit(np.where(known[:, None, None, None], true_pa, predicted_pa))
    place = _Places(predicted_pa.shape[-2:], len(predicted_pa), bool(known.any()))
    figure = Figure(figsize=place.figure_inches)
    for row, (mask, name) in enumerate(zip(cell_mask, sample_ids, strict=True)):
        displacement_um = displacement_px[row] * pixel_size_um[row]
        true, predicted = true_pa[row] * factor, predicted_pa[row] * factor
        largest = _brightest(vector_maps.size_of(true if known[row] else predicted), mask)
        maps = [place.map(figure, row, 0, "displacement"), place.map(figure, row, 2, "predicted traction")]
        maps[0].set_ylabel(name, fontsize=8, labelpad=3, parse_math=False)
        longest_um = _brightest(vector_maps.size_of(displacement_um))
        _vector_map(maps[0], place.bar(figure, row, 0), displacement_um, longest_um, "µm")
        vector_maps.draw_scale_bar(maps[0], mask.shape, pixel_size_um=float(pixel_size_um[row]))
        _vector_map(maps[1], place.bar(figure, row, 2), predicted, largest, unit)
        if known[row]:
            maps.append(place.map(figure, row, 1, "true traction"))
            _vector_map(maps[2], None, true, largest, unit)
            maps.append(place.map(figure, row, 3, f"error, NRMSE {_nrmse(predicted, true, mask):.3f}"))
            error = vector_maps.size_of(predicted - true)
            limit = max(_brightest(error, mask), LEAST_ERROR_SHARE * largest)
            image = vector_maps.draw_map(maps[3], error, largest=limit, colours=ERROR_COLOURS)
            bar = place.bar(figure, row, 3)
            vector_maps.draw_colour_bar(bar, image, f"|T − T₀| ({unit})", cut=_highest(error) > limit)
        for ax in maps:
            vector_maps.draw_outline(ax, mask)
    return figure


class _Places:
    """Where the maps of a panel lie: in inches, so that maps of one row have one size.

    Columns are displacement, true and predicted traction, error; the colour bar of a map stands to its right.
    """

    def __init__(self, shape_px: tuple[int, ...], rows: int, with_truth: bool) -> None:
        self.height, self.width = (MAP_INCHES * extent / max(shape_px) for extent in shape_px)
        with_bar = self.width + GAP_INCHES + BAR_SPACE_INCHES
        steps = [with_bar, self.width + GAP_INCHES, with_bar, with_bar] if with_truth else [with_bar, 0, with_bar, 0]
        self.lefts = [MARGIN_INCHES + sum(steps[:column]) for column in range(5)]
        self.figure_inches = (self.lefts[-1], max(rows, 1) * (self.height + TITLE_INCHES) + 0.05)

    def map(self, figure: Figure, row: int, column: int, title: str) -> Axes:
        """Axes of a map."""
        ax = vector_maps.map_axes(figure, self.lefts[column], self._bottom(row), self.width, self.height)
        ax.set_title(title, fontsize=9, pad=4)
        return ax

    def bar(self, figure: Figure, row: int, column: int) -> Axes:
        """Axes of the colour bar beside a map."""
        left = self.lefts[column] + self.width + GAP_INCHES
        return vector_maps.map_axes(figure, left, self._bottom(row), BAR_INCHES, self.height)

    def _bottom(self, row: int) -> float:
        return self.figure_inches[1] - (row + 1) * (self.height + TITLE_INCHES)


def contact_sheet(samples: Sequence[Any]) -> Figure:
    """Samples of a data set, at most twelve spread evenly over those given: displacement beside traction.

    Args:
        samples: objects with `sample_id` and `fields` {"displacement_um": (2, y, x), "cell_mask": (1, y, x)}, and where
            it is known "traction_pa": (2, y, x).

    """
    chosen = np.unique(np.linspace(0, len(samples) - 1, min(len(samples), SAMPLES_ON_SHEET)).round().astype(int))
    columns = max(1, min(SHEET_COLUMNS, len(chosen)))
    rows = max(1, -(-len(chosen) // columns))
    cell_width, cell_height = 2 * SHEET_INCHES + 0.2, SHEET_INCHES + 0.42
    figure = Figure(figsize=(columns * cell_width + 0.1, rows * cell_height + 0.05))
    up = figure.get_figheight()
    for place, number in enumerate(chosen):
        fields = samples[number].fields
        mask = np.asarray(fields["cell_mask"])[0]
        displacement_um = np.asarray(fields["displacement_um"])
        traction_pa = np.asarray(fields.get("traction_pa", np.full_like(displacement_um, np.nan)))
        height, width = (SHEET_INCHES * extent / max(mask.shape) for extent in mask.shape)
        left = 0.1 + (place % columns) * cell_width
        bottom = up - (place // columns + 1) * cell_height + SHEET_INCHES - height
        unit, factor = _pressure_unit(traction_pa)
        for step, (field, name, colours) in enumerate(
            ((displacement_um, "µm", DISPLACEMENT_COLOURS), (traction_pa * factor, unit, TRACTION_COLOURS))
        ):
            ax = vector_maps.map_axes(figure, left + step * (width + 0.04), bottom, width, height)
            size = vector_maps.size_of(field)
            vector_maps.draw_map(ax, size, largest=_brightest(size), colours=colours)
            vector_maps.draw_outline(ax, mask)
            title = f"{samples[number].sample_id}\n" if step == 0 else ""
            largest = f"{'uT'[step]} ≤ {_highest(size):.3g} {name}" if np.isfinite(size).any() else ""
            ax.set_title(title + (largest or "traction unknown"), fontsize=6.5, pad=3, loc="left", parse_math=False)
        if place == 0:
            pixel_size_um = float(fields["pixel_size_um"])
            vector_maps.draw_scale_bar(figure.axes[0], mask.shape, pixel_size_um=pixel_size_um)
    return figure


def _vector_map(ax: Axes, bar: Axes | None, field: np.ndarray, largest: float, unit: str) -> None:
    """One vector field with its arrows; with a colour bar where there is room for one."""
    size = vector_maps.size_of(field)
    colours = DISPLACEMENT_COLOURS if unit == "µm" else TRACTION_COLOURS
    image = vector_maps.draw_map(ax, size, largest=largest, colours=colours)
    vector_maps.draw_arrows(ax, field, largest=largest)
    vector_maps.draw_reference_arrow(ax, size.shape, largest=largest, unit=unit)
    if bar is not None:
        quantity = "|u|" if unit == "µm" else "|T|"
        vector_maps.draw_colour_bar(bar, image, f"{quantity} ({unit})", cut=_highest(size) > largest)


def _pressure_unit(traction_pa: np.ndarray) -> tuple[str, float]:
    finite = traction_pa[np.isfinite(traction_pa)]
    return ("kPa", 1e-3) if finite.size and np.abs(finite).max() >= 1000 else ("Pa", 1.0)


def _brightest(size: np.ndarray, inside: np.ndarray | None = None) -> float:
    """The value that gets the brightest colour, of the pixels inside where some are; 1 for a field of zeros."""
    if inside is not None and np.any(inside):
        size = size[np.asarray(inside, dtype=bool)]
    finite = size[np.isfinite(size)]
    if not finite.size:
        return 1.0
    return float(np.percentile(finite, BRIGHTEST_PERCENT)) or float(finite.max()) or 1.0


def _highest(size: np.ndarray) -> float:
    return float(np.max(size, where=np.isfinite(size), initial=0.0))


def _nrmse(predicted: np.ndarray, true: np.ndarray, mask: np.ndarray) -> float:
    inside = np.asarray(mask, dtype=bool)
    norm = float(np.linalg.norm(true[:, inside]))
    return float(np.linalg.norm((predicted - true)[:, inside])) / norm if norm else np.nan


# -- runs -------------------------------------------------------------------------------------------------------------


def comparison(runs: Sequence[Mapping[str, Any]]) -> dict[str, Figure]:
    """Draw the errors of methods from tests, beside what the authors published.

    Args:
        runs: mappings with `config` (nested) and `summary`, trained or recorded tests; `figures.traction_methods` says
            which of them are one method.

    Returns:
        "figure_3": a bar per method, grouped by noise, hatched with cutoff; a panel per data set.
        "error_against_noise": a line per method that was tested at several noises; a panel per data set.
        "robustness": errors of methods tested with several operators that made the displacement (centre element, reach,
        Poisson's ratio, blur), or on several data sets; panels per noise.
        Each only where the runs have its numbers.

    """
    methods = methods_of(runs)
    conditions = sorted({condition for method in methods for condition in method.scores})
    made = [condition for condition in conditions if condition.operator == AS_MADE]
    datasets = list(dict.fromkeys(condition.dataset for condition in made))
    noises = {name: [c.noise_px for c in made if c.dataset == name] for name in datasets}
    others = published_of_others(runs)
    rows = []
    for dataset, noise_px in dict.fromkeys((c.dataset, c.noise_px) for c in conditions):
        places = {c.operator: c for c in conditions if (c.dataset, c.noise_px) == (dataset, noise_px)}
        ordered = {name: places[name] for name in sorted(places, key=lambda name: name != AS_MADE)}
        rows.append(dots(methods, f"{dataset}, noise {noise_px:g} px: operator of the data", ordered))
    for noise_px in sorted({c.noise_px for c in made}):
        places = {c.dataset: c for c in made if c.noise_px == noise_px}
        rows.append(dots(methods, f"noise {noise_px:g} px: data set", places))
    figures = {
        "figure_3": ([bars(methods, name, noises[name], others) for name in datasets], 10.5),
        "error_against_noise": ([lines(methods, name, noises[name]) for name in datasets], 8.2),
        "robustness": (rows, 9.5),
    }
    drawn = {name: ([panel for panel in panels if panel.methods], width) for name, (panels, width) in figures.items()}
    stacks = {name: stacked(panels, width, methods) for name, (panels, width) in drawn.items() if panels}
    if "figure_3" in stacks:
        stacks["figure_3"].supxlabel(PREPRINT, x=0.01, ha="left", fontsize=6.5, color="0.4")
    return stacks
