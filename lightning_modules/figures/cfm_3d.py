"""Figures of the paper `cfm_3d`: slices with vectors, forces in space, errors of methods by data set and by time.

Duan et al., Biophys J 121:2180 (2022), 10.1016/j.bpj.2022.04.028; the text at hand holds no figure, the choice is ours.
Fields are (n, 3, z, y, x), components (x, y, z), voxel sizes (n, 3) in the order (z, y, x).
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

from lightning_modules.figures import vector_maps

PLANES = (("z", (0, 1), "xy"), ("y", (0, 2), "xz"), ("x", (1, 2), "yz"))
"""The axis that a slice cuts, the components in it (right, down), its name."""
MAP_INCHES, GAP_INCHES, TITLE_INCHES, BAR_INCHES = 2.3, 0.12, 0.3, 0.09
BRIGHTEST_PERCENT = 99.5
MOST_ARROWS = 300
STRONG_SHARE = 0.15
"""Of the largest force: weaker voxels get no arrow in space."""
ERROR, FORCE_ERROR = "test/displacement_median_error_vx", "test/body_force_relative_l2"
NUMBER = re.compile(r"\d*\.?\d+")
"""At the end of a data set's name."""
ZERO, SECONDS = "test/zero_displacement_median_error_vx", "test/seconds_per_volume"


def volume_slices(
    volume: np.ndarray,
    predicted_um: np.ndarray,
    true_um: np.ndarray,
    voxel_size_um: np.ndarray,
    *,
    sample_ids: Sequence[str],
) -> Figure:
    """Draw orthogonal slices through the middle of volumes, with the displacement in them as arrows.

    A row for the deformed volume and the predicted displacement, a row for the true one where it is known; both share
    colours, which show the length in all three directions, and arrows.

    Args:
        volume: (n, z, y, x), in [0, 1].
        predicted_um: (n, 3, z, y, x) in um.
        true_um: the same; NaN where unknown.
        voxel_size_um: (n, 3).
        sample_ids: n names.

    """
    rows: list[tuple[str, int, np.ndarray]] = []
    for number, name in enumerate(sample_ids):
        rows.append((f"{name}, predicted u", number, predicted_um[number]))
        if np.isfinite(true_um[number]).all():
            rows.append((f"{name}, true u", number, true_um[number]))
    width, height = MAP_INCHES + GAP_INCHES, MAP_INCHES + TITLE_INCHES
    figure = Figure(figsize=(4 * width + 0.8, len(rows) * height + 0.1))
    up = figure.get_figheight()
    for row, (name, number, field) in enumerate(rows):
        bottom = up - (row + 1) * height
        known = true_um[number] if np.isfinite(true_um[number]).all() else predicted_um[number]
        largest = _brightest(np.linalg.norm(known, axis=0))
        image = None
        for column, (axis, components, plane) in enumerate(PLANES):
            cut, ratio = _cut(field, axis), _ratio(voxel_size_um[number], axis)
            beads = _cut(volume[number][None], axis)[0]
            left = 0.1 + (column + 1) * width
            if column == 0:
                ax = vector_maps.map_axes(figure, 0.1, bottom, MAP_INCHES, MAP_INCHES)
                ax.imshow(beads, cmap="gray", vmin=0, vmax=_brightest(beads), aspect=ratio)
                ax.set_title(f"{name.split(',')[0]}, deformed, {plane}", fontsize=7, loc="left", parse_math=False)
            ax = vector_maps.map_axes(figure, left, bottom, MAP_INCHES, MAP_INCHES)
            image = vector_maps.draw_map(ax, np.linalg.norm(cut, axis=0), largest=largest, colours="viridis")
            ax.set_aspect(ratio)
            vector_maps.draw_arrows(ax, cut[list(components)], largest=largest)
            ax.set_title(f"{name.split(', ')[-1]}, {plane}", fontsize=7, loc="left", parse_math=False)
        if image is not None:
            bar = vector_maps.map_axes(figure, 0.1 + 4 * width, bottom, BAR_INCHES, MAP_INCHES)
            cut_off = float(np.linalg.norm(field, axis=0).max()) > largest
            vector_maps.draw_colour_bar(bar, image, "|u| (µm)", cut=cut_off)
    return figure


def force_views(
    predicted: np.ndarray, true: np.ndarray, voxel_size_um: np.ndarray, *, sample_ids: Sequence[str]
) -> Figure:
    """Draw the strongest forces of volumes as arrows in space, predicted beside true ones where these are known.

    Args:
        predicted: (n, 3, z, y, x) in N/m^3.
        true: the same; NaN where unknown.
        voxel_size_um: (n, 3).
        sample_ids: n names.

    """
    known = np.isfinite(true).all(axis=(1, 2, 3, 4))
    columns = 1 + int(known.any())
    figure = Figure(figsize=(4.2 * columns, 3.9 * len(sample_ids)), layout="constrained")
    for number, name in enumerate(sample_ids):
        fields = [("predicted", predicted[number])] + ([("true", true[number])] if known[number] else [])
        strongest = [float(np.linalg.norm(field, axis=0).max()) for _, field in fields]
        largest = strongest[-1] or strongest[0] or 1.0
        for column, (kind, field) in enumerate(fields):
            ax: Any = figure.add_subplot(len(sample_ids), columns, number * columns + column + 1, projection="3d")
            _draw_forces(ax, field, voxel_size_um[number], largest)
            title = f"{name}: {kind} force\nlongest arrow {strongest[column]:.2g} N/m³"
            ax.set_title(title, fontsize=8, parse_math=False)
    return figure


def comparison(runs: Sequence[Mapping[str, Any]]) -> dict[str, Figure]:
    """Draw errors and times of methods from tests.

    Args:
        runs: mappings with `config` (nested) and `summary`, trained or recorded tests.

    Returns:
        "errors": bars of the displacement and force errors of every method's best test, per data set.
        "error_against_time": median displacement error against seconds per volume, a line per method and data set.
        "error_against_<quantity>": both errors of every method's best test against a number, for data sets that are
        named after it, `<quantity>_<number>` (density_0.005, photons_50), where a quantity has several; the figures
        before leave those data sets out where there are others.
        Each only where the runs have its numbers.

    """
    tested = [run for run in runs if np.isfinite(_number(run, ERROR))]
    series = _series(tested)
    in_series = {name for sets in series.values() for _, name in sets}
    compared = [run for run in tested if _dataset(run) not in in_series] or tested
    figures = {}
    if compared:
        figures["errors"] = _bars(compared)
    timed = [run for run in compared if np.isfinite(_number(run, SECONDS))]
    if timed:
        figures["error_against_time"] = _times(timed)
    for quantity, sets in series.items():
        figures[f"error_against_{quantity}"] = _errors_against(quantity, sets, tested)
    return figures


def _bars(runs: Sequence[Mapping[str, Any]]) -> Figure:
    datasets = sorted({_dataset(run) for run in runs})
    methods = sorted({_method(run) for run in runs})
    figure = Figure(figsize=(max(6.0, 1.1 * len(datasets) * len(methods)), 6.5), layout="constrained")
    panels = figure.subplots(2, 1)
    width = 0.8 / len(methods)
    for ax, metric, label in zip(
        panels, (ERROR, FORCE_ERROR), ("median |u - u0| (voxels)", "body force, relative L2"), strict=True
    ):
        for place, method in enumerate(methods):
            best = [_best(runs, method, dataset, metric) for dataset in datasets]
            at = np.arange(len(datasets)) + (place - (len(methods) - 1) / 2) * width
            ax.bar(at, best, 0.92 * width, label=method, color=f"C{place % 10}")
        if metric == ERROR:
            zero = [np.nanmean([_number(run, ZERO) for run in runs if _dataset(run) == name]) for name in datasets]
            for number, value in enumerate(zero):
                label_zero = "no displacement" if number == 0 else None
                ax.plot([number - 0.45, number + 0.45], [value, value], "--", color="0.4", label=label_zero)
        ax.set_xticks(range(len(datasets)), datasets)
        ax.set(ylabel=label, yscale="log")
        _label_log(ax.yaxis)
        ax.spines[["top", "right"]].set_visible(False)
    panels[0].legend(frameon=False, fontsize=8)
    panels[1].set_xlabel("data set")
    return figure


def _times(runs: Sequence[Mapping[str, Any]]) -> Figure:
    figure = Figure(figsize=(6.0, 4.2), layout="constrained")
    ax = figure.subplots()
    lines = sorted({(_method(run), _dataset(run)) for run in runs})
    for number, (method, dataset) in enumerate(lines):
        chosen = [run for run in runs if (_method(run), _dataset(run)) == (method, dataset)]
        fastest: dict[float, float] = {}  # what changes the force alone is one point
        for run in chosen:
            error, seconds = _number(run, ERROR), _number(run, SECONDS)
            fastest[error] = min(seconds, fastest.get(error, seconds))
        points = sorted((seconds, error) for error, seconds in fastest.items())
        ax.plot(*zip(*points, strict=True), "o-", color=f"C{number % 10}", label=f"{method}, {dataset}", markersize=4)
    ax.set(xlabel="seconds per volume", ylabel="median |u - u0| (voxels)", xscale="log", yscale="log")
    _label_log(ax.xaxis)
    _label_log(ax.yaxis)
    ax.spines[["top", "right"]].set_visible(False)
    ax.legend(frameon=False, fontsize=8)
    return figure


def _series(runs: Sequence[Mapping[str, Any]]) -> dict[str, list[tuple[float, str]]]:
    """Quantity -> numbers and names of the data sets that differ in it, ascending."""
    found: dict[str, list[tuple[float, str]]] = {}
    for name in sorted({_dataset(run) for run in runs}):
        quantity, _, written = name.rpartition("_")
        if quantity and NUMBER.fullmatch(written):
            found.setdefault(quantity, []).append((float(written), name))
    return {quantity: sorted(sets) for quantity, sets in found.items() if len(sets) > 1}


def _errors_against(quantity: str, sets: list[tuple[float, str]], runs: Sequence[Mapping[str, Any]]) -> Figure:
    figure = Figure(figsize=(9.0, 3.8), layout="constrained")
    panels = figure.subplots(1, 2)
    numbers = [number for number, _ in sets]
    for ax, metric, label in zip(
        panels, (ERROR, FORCE_ERROR), ("median |u - u0| (voxels)", "body force, relative L2"), strict=True
    ):
        for place, method in enumerate(sorted({_method(run) for run in runs})):
            errors = [_best(runs, method, name, metric) for _, name in sets]
            if np.isfinite(errors).any():
                ax.plot(numbers, errors, "o-", color=f"C{place % 10}", label=method, markersize=4)
        ax.set(xlabel=quantity.replace("_", " "), ylabel=label, xscale="log", yscale="log")
        ax.set_xticks(numbers, [f"{number:g}" for number in numbers])
        ax.xaxis.set_minor_locator(NullLocator())
        _label_log(ax.yaxis)
        ax.spines[["top", "right"]].set_visible(False)
    panels[0].legend(frameon=False, fontsize=8)
    return figure


def _label_log(axis: Any) -> None:
    """Plain numbers at 1, 2 and 5 of every decade: a range within one decade has few others."""
    axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_locator(NullLocator())


def _method(run: Mapping[str, Any]) -> str:
    module = run["config"]["module"]
    name = str(module["class_path"]).rsplit(".", 1)[-1]
    return f"{name} ({module['network']})" if "network" in module else name


def _dataset(run: Mapping[str, Any]) -> str:
    return str(run["config"]["data"]["dataset"])


def _number(run: Mapping[str, Any], metric: str) -> float:
    value = run["summary"].get(metric)
    return float(value) if isinstance(value, int | float) else np.nan


def _best(runs: Sequence[Mapping[str, Any]], method: str, dataset: str, metric: str) -> float:
    found = [_number(run, metric) for run in runs if _method(run) == method and _dataset(run) == dataset]
    return min((value for value in found if np.isfinite(value)), default=np.nan)


def _cut(field: np.ndarray, axis: str) -> np.ndarray:
    """The middle slice (c, rows, columns) of a field (c, z, y, x) across an axis."""
    place = {"z": 1, "y": 2, "x": 3}[axis]
    return np.take(field, field.shape[place] // 2, axis=place)


def _ratio(voxel_size_um: np.ndarray, axis: str) -> float:
    """Height of a pixel of such a slice over its width."""
    z, y, x = (float(edge) for edge in voxel_size_um)
    return {"z": y / x, "y": z / x, "x": z / y}[axis]


def _brightest(values: np.ndarray) -> float:
    finite = values[np.isfinite(values)]
    return (float(np.percentile(finite, BRIGHTEST_PERCENT)) or float(finite.max()) or 1.0) if finite.size else 1.0


def _draw_forces(ax: Any, field: np.ndarray, voxel_size_um: np.ndarray, largest: float) -> None:
    """Arrows in um, z down into the gel."""
    strength = np.linalg.norm(np.nan_to_num(field), axis=0)
    edges = np.asarray(strength.shape) * voxel_size_um
    order = np.argsort(strength, axis=None)[::-1]
    order = order[strength.ravel()[order] > STRONG_SHARE * largest]
    order = order[:: max(1, -(-len(order) // MOST_ARROWS))]
    if len(order):
        z, y, x = np.unravel_index(order, strength.shape)
        vectors = field[:, z, y, x] * (0.15 * edges.max() / largest)
        size_z, size_y, size_x = voxel_size_um
        colours = {"color": vector_colours(strength[z, y, x] / largest), "linewidth": 0.9}
        ax.quiver(x * size_x, y * size_y, z * size_z, *vectors, arrow_length_ratio=0.35, **colours)
    ax.set(xlim=(0, edges[2]), ylim=(0, edges[1]), zlim=(edges[0], 0))
    for name in "xyz":
        getattr(ax, f"set_{name}label")(f"{name} (µm)", fontsize=7, labelpad=-2)
    ax.set_box_aspect((edges[2], edges[1], edges[0]), zoom=0.85)  # room for the labels
    ax.tick_params(labelsize=6, pad=0)


def vector_colours(shares: np.ndarray) -> np.ndarray:
    """Colours (n, 4) of shares (n,) of the largest force, dark for weak ones on white."""
    from matplotlib import colormaps

    return np.asarray(colormaps["plasma_r"](0.15 + 0.85 * np.clip(shares, 0, 1)))
