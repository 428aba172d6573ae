"""Figures of the paper `tfill`: what a network draws, the metric table, the distances of nuclei, and runs side by side.

Vasudevan, Zheng et al., PLOS ONE 0271056 (2022): fig. 2d (strip actin, real, TFill, pix2pix, CycleGAN), fig. 2e (table
of image metrics), fig. 3e (distances of matched nuclei in bins of 4 um) and 3f (0 to 4 um in bins of 0.2 um). Distances
and the strip come from the predictions of a run (`mechanolab predict EXPERIMENT --run ID`), all else from its test.
"""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.image import imread
from matplotlib.lines import Line2D

from lightning_modules.figures.nuclei_overlays import GENERATED_RGB, REAL_RGB, bar_um

NAMES = {"TFillTranslation": "TFill", "Pix2PixTranslation": "pix2pix", "CycleGANTranslation": "CycleGAN"}
COLOURS = ("#2f6690", "#c8553d", "#2a9d5c", "#7b4b94", "#d69f00", "#4ca6c9", "#8a6d1d", "#d16ba5", "#5b5b5b")
LIMIT_COLOUR = "#2a9d5c"
COLUMNS = {
    "test/l1": ("L1 ↓", "{:.4f}"),
    "test/psnr_db": ("PSNR (dB) ↑", "{:.2f}"),
    "test/ssim": ("SSIM ↑", "{:.3f}"),
    "test/lpips": ("LPIPS ↓", "{:.3f}"),
    "test/fid": ("FID ↓", "{:.1f}"),
    "test/matched_4um": ("< 4 µm", "{:.1%}"),
    "test/matched_1um": ("< 1 µm", "{:.1%}"),
    "test/detection_rate": ("detected", "{:.1%}"),
    "test/f1": ("F1", "{:.3f}"),
    "test/count_error": ("count error", "{:.1%}"),
    "test/area_share_generated": ("nuclear area", "{:.1%}"),
}
"""The table's columns: metric, head, how its numbers are written."""
PARAMETERS = "weights (M)"
"""Head of the column of parameters: of the generator + of all else."""
BEST = "best possible"
COARSE_UM, COARSE_MOST_UM = 4.0, 40.0
FINE_UM, FINE_MOST_UM = 0.2, 4.0
STRIP_ROWS, MOST_ROWS = 4, 16
SHEET_SAMPLES, SHEET_COLUMNS = 12, 3
CELL_INCHES = 1.9


def translation_panel(
    actin: np.ndarray,
    real: np.ndarray,
    generated: np.ndarray,
    overlays: Sequence[np.ndarray],
    *,
    pixel_size_um: Sequence[float],
    sample_ids: Sequence[str],
) -> Figure:
    """A row per image: actin, real nuclei, generated nuclei, outlines of both on the actin.

    Args:
        actin: (n, y, x) in [0, 1].
        real: (n, y, x) in [0, 1]; NaN where unknown.
        generated: (n, y, x) in [0, 1].
        overlays: n pictures (y, x, 3) with a scale bar.
        pixel_size_um: n sides of a pixel (um).
        sample_ids: n names.

    """
    rows = max(1, len(sample_ids))
    figure = Figure(figsize=(4 * CELL_INCHES, rows * CELL_INCHES + 0.5), layout="constrained")
    axes = figure.subplots(rows, 4, squeeze=False)
    for row, name in enumerate(sample_ids):
        for ax, picture in zip(axes[row], (actin[row], real[row], generated[row], overlays[row]), strict=True):
            _show(ax, picture)
        axes[row, 0].set_ylabel(name, fontsize=7, parse_math=False)
        length_um = bar_um(actin.shape[-1], pixel_size_um=float(pixel_size_um[row]))
        axes[row, 3].set_xlabel(f"bar {length_um:g} µm", fontsize=7, labelpad=2)
    for ax, title in zip(axes[0], ("actin", "real nuclei", "generated nuclei", "outlines"), strict=True):
        ax.set_title(title, fontsize=9)
    handles = [
        Line2D([], [], color=np.array(colour) / 255, label=label)
        for colour, label in ((GENERATED_RGB, "generated"), (REAL_RGB, "real"))
    ]
    figure.legend(handles=handles, loc="outside lower right", ncols=2, frameon=False, fontsize=8)
    return figure


def contact_sheet(samples: Sequence[Any]) -> Figure:
    """Samples of a data set, at most twelve spread evenly over those given: actin beside nuclei.

    Args:
        samples: objects with `sample_id` and `fields` {"actin": (1, y, x)}, and where they are known "nucleus".

    """
    chosen = np.unique(np.linspace(0, len(samples) - 1, min(len(samples), SHEET_SAMPLES)).round().astype(int))
    columns = max(1, min(SHEET_COLUMNS, len(chosen)))
    rows = max(1, -(-len(chosen) // columns))
    figure = Figure(figsize=(columns * 2 * CELL_INCHES, rows * (CELL_INCHES + 0.25)), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False).ravel()
    for ax in axes[len(chosen) :]:
        ax.set_axis_off()
    for ax, number in zip(axes, chosen, strict=False):
        fields = samples[number].fields
        actin = np.asarray(fields["actin"], dtype=np.float64)[0]
        nucleus = np.asarray(fields["nucleus"], dtype=np.float64)[0] if "nucleus" in fields else np.full_like(actin, 0)
        pair = [part / max(float(part.max()), 1e-12) for part in (actin, nucleus)]
        _show(ax, np.concatenate(pair, axis=1))
        ax.set_title(samples[number].sample_id, fontsize=7, parse_math=False)
    return figure


def comparison(runs: Sequence[Mapping[str, Any]]) -> dict[str, Figure]:
    """Draw the paper's figures from runs.

    Args:
        runs: mappings with `run_id`, `config` (nested), `summary`, `irreducible_error`, `folder`, the run's own, and
            `parameters`, how many each part of the module has, or None.

    Returns:
        "figure_2e": the table of metrics, with the parameters of the generator that draws nuclei and of all else that
            was trained, and with the best possible shares where the data set states them.
        "figure_3": distances of generated nuclei from the real ones they were given, in bins of 4 and of 0.2 um.
        "figure_2d": actin, real nuclei and what each method made of the actin, TFill, pix2pix, CycleGAN, for images
            that all have predicted: of every method its first run on the data set that most were run on.
        Each only where the runs have what it needs. Of many runs the first ones are shown, and the first of every
        method.

    """
    methods = _shown([_Method(name, run) for name, run in zip(_names(runs), runs, strict=True)])
    tested = [method for method in methods if any(column in method.run["summary"] for column in COLUMNS)]
    figures = {"figure_2e": _table(tested)} if tested else {}
    distances = {method.name: found for method in methods if len(found := _distances_um(method.predictions()))}
    if distances:
        figures["figure_3"] = _histograms(distances)
    strips = _strips_of_one_data_set(methods)
    common = sorted(set.intersection(*(set(found) for found in strips.values()))) if strips else []
    if common:
        figures["figure_2d"] = _strip_figure(strips, common[:STRIP_ROWS])
    return figures


class _Method(NamedTuple):
    """A run and what it is called."""

    name: str
    run: Mapping[str, Any]

    @property
    def kind(self) -> str:
        """Its class."""
        return _kind(self.run["config"])

    @property
    def data_set(self) -> str:
        """What it was trained and tested on: sample ids of two data sets may be the same."""
        return str(self.run["config"].get("data", {}).get("dataset", ""))

    def predictions(self) -> Path | None:
        """The folder of its predictions for the test split, if it has one."""
        folder = Path(self.run["folder"]) / "predictions" / "test" if self.run.get("folder") else None
        return folder if folder is not None and folder.is_dir() else None


def _shown(methods: Sequence[_Method]) -> list[_Method]:
    """At most `MOST_ROWS`, in their order, no kind of method crowded out by runs of another."""
    kinds = [method.kind for method in methods]
    by_worth = sorted(range(len(methods)), key=lambda place: kinds.index(kinds[place]) != place)
    return [methods[place] for place in sorted(by_worth[:MOST_ROWS])]


def _strips_of_one_data_set(methods: Sequence[_Method]) -> dict[str, dict[str, Path]]:
    """Name of a method -> its pictures by sample, in the paper's order."""
    found: dict[str, dict[str, tuple[str, dict[str, Path]]]] = {}
    for method in methods:
        pictures = _strips(method.predictions())
        if pictures:
            found.setdefault(method.data_set, {}).setdefault(method.kind, (method.name, pictures))
    kinds = max(found.values(), key=len, default={})
    places = {name: place for place, name in enumerate(NAMES)}
    return dict(kinds[kind] for kind in sorted(kinds, key=lambda kind: places.get(kind, len(places))))


def _names(runs: Sequence[Mapping[str, Any]]) -> list[str]:
    """Method, and what sets runs of one method apart."""
    flat = [_flat(run["config"]) for run in runs]
    kinds = [_kind(run["config"]) for run in runs]
    names = []
    for kind, settings, run in zip(kinds, flat, runs, strict=True):
        alike = [other for other, other_kind in zip(flat, kinds, strict=True) if other_kind == kind]
        keys = sorted({key for other in alike for key in other if key.startswith(("module.", "data.", "seed"))})
        apart = [key for key in keys if len({json.dumps(other.get(key), default=str) for other in alike}) > 1]
        shown = [f"{key.rpartition('.')[2]} {settings.get(key)}" for key in apart if key != "data.data_root"][:3]
        names.append(", ".join([NAMES.get(kind, kind), *shown]))
        if names.count(names[-1]) > 1:
            names[-1] += f" ({run['run_id']})"
    return names


def _kind(config: Mapping[str, Any]) -> str:
    return str(config.get("module", {}).get("class_path", "")).rpartition(".")[2]


def _flat(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in config.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
    return flat


def _table(methods: Sequence[_Method]) -> Figure:
    columns = [name for name in COLUMNS if any(name in method.run["summary"] for method in methods)]
    heads = [COLUMNS[name][0] for name in columns]
    sizes = [_parameters(method.run) for method in methods]
    counted = [PARAMETERS] if any(sizes) else []
    heads += counted
    cells = [
        [*(_cell(method.run["summary"], name) for name in columns), *(size or "–" for _ in counted)]
        for method, size in zip(methods, sizes, strict=True)
    ]
    labels = [method.name for method in methods]
    limits = {method.data_set: found for method in methods if (found := _limits(method.run))}
    for data_set, limit in limits.items():
        if any(name in limit for name in columns):
            labels.append(f"{BEST} ({data_set})" if len(limits) > 1 else BEST)
            possible = [COLUMNS[name][1].format(limit[name]) if name in limit else "" for name in columns]
            cells.append([*possible, *("" for _ in counted)])
    figure = Figure(figsize=(2.6 + 0.95 * len(heads), 0.6 + 0.3 * len(cells)))
    left = min(0.5, 0.1 + 0.062 * max(map(len, labels)) * 7.2 / (7.2 * figure.get_figwidth()) + 0.02)
    ax = figure.add_axes((left, 0.02, 0.98 - left, 0.96))
    ax.set_axis_off()
    table = ax.table(cellText=cells, colLabels=heads, rowLabels=labels, loc="center", cellLoc="center")
    table.auto_set_font_size(False)
    table.set_fontsize(8)
    table.scale(1, 1.35)
    for (row, _), cell in table.get_celld().items():
        cell.set_linewidth(0)
        if row == 0:
            cell.set_text_props(weight="bold")
        elif row > len(methods):
            cell.set_text_props(color=LIMIT_COLOUR)
    return figure


def _parameters(run: Mapping[str, Any]) -> str:
    """Millions of trainable parameters: of the generator of nuclei, and of everything else; empty where unknown."""
    counts = run.get("parameters") or {}
    drawing = counts.get("generator", 0)
    return f"{drawing / 1e6:.2f} + {(sum(counts.values()) - drawing) / 1e6:.2f}" if counts else ""


def _cell(summary: Mapping[str, Any], name: str) -> str:
    value = summary.get(name)
    return COLUMNS[name][1].format(value) if isinstance(value, int | float) and math.isfinite(value) else "–"


def _limits(run: Mapping[str, Any]) -> dict[str, float]:
    """What an oracle gets, by metric: what the data set states, and the others that it states beside it.

    Leaving out the nuclei that actin does not tell raises the shares of matched ones above this, at a lower detection.
    """
    limit = run.get("irreducible_error") or {}
    stated = {**(limit.get("others") or {}), **({limit["metric"]: limit["value"]} if "metric" in limit else {})}
    return {f"test/{name.rpartition('/')[2]}": float(value) for name, value in stated.items()}


def _distances_um(folder: Path | None) -> np.ndarray:
    """Distance of every generated nucleus from the real one it was given, (n,) um; infinite for none."""
    path = folder / "nuclei.csv" if folder is not None else None
    if path is None or not path.is_file():
        return np.zeros(0)
    with path.open(newline="", encoding="utf-8") as file:
        rows = [row["distance_um"] for row in csv.DictReader(file) if row["kind"] == "generated"]
    distances = np.array([float(text or "nan") for text in rows])
    return np.where(np.isfinite(distances), distances, np.inf)


def _histograms(distances: Mapping[str, np.ndarray]) -> Figure:
    """Fig. 3e and 3f, as shares of all generated nuclei."""
    figure = Figure(figsize=(9.5, 3.8), layout="constrained")
    panels = figure.subplots(1, 2)
    for ax, width, most in zip(panels, (COARSE_UM, FINE_UM), (COARSE_MOST_UM, FINE_MOST_UM), strict=True):
        edges = np.linspace(0, most, round(most / width) + 1)
        for number, (name, found) in enumerate(distances.items()):
            shares = np.histogram(found, edges)[0] / len(found)
            label = f"{name} (n = {len(found)})"
            ax.stairs(shares, edges, color=COLOURS[number % len(COLOURS)], linewidth=1.6, label=label)
        ax.set(xlabel="distance from the real nucleus (µm)", ylabel=f"share of generated nuclei per {width:g} µm")
        ax.set_xlim(0, most)
        ax.set_ylim(bottom=0)
        ax.spines[["top", "right"]].set_visible(False)
    panels[0].axvline(COARSE_UM, color="0.6", linestyle=":")
    panels[0].legend(frameon=False, fontsize=8)
    return figure


def _strips(folder: Path | None) -> dict[str, Path]:
    """Sample -> its picture of actin, real and generated nuclei side by side."""
    ending = "_side_by_side.png"
    return {path.name.removesuffix(ending): path for path in folder.glob(f"*{ending}")} if folder is not None else {}


def _strip_figure(strips: Mapping[str, Mapping[str, Path]], samples: Sequence[str]) -> Figure:
    """Fig. 2d: a row per sample; the actin and the real nuclei once, then every method."""
    columns = 2 + len(strips)
    figure = Figure(figsize=(columns * CELL_INCHES, len(samples) * CELL_INCHES + 0.4), layout="constrained")
    axes = figure.subplots(len(samples), columns, squeeze=False)
    for row, sample in enumerate(samples):
        pictures = [np.split(imread(found[sample]), 3, axis=1) for found in strips.values()]
        for ax, picture in zip(axes[row], [*pictures[0][:2], *(parts[2] for parts in pictures)], strict=True):
            _show(ax, picture)
        axes[row, 0].set_ylabel(sample, fontsize=7, parse_math=False)
    for ax, title in zip(axes[0], ("actin", "real", *strips), strict=True):
        ax.set_title(title, fontsize=8, parse_math=False)
    return figure


def _show(ax: Axes, picture: np.ndarray) -> None:
    ax.imshow(picture, cmap="gray", vmin=0, vmax=1 if picture.ndim == 2 else None, interpolation="nearest")
    ax.set(xticks=[], yticks=[])
    for spine in ax.spines.values():
        spine.set_visible(False)
