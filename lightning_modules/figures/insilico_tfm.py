"""Figures of the paper `insilico_tfm`: figures 1 to 4, whether the uncertainty is right, and runs against each other.

Pielawski et al., ISBI 2020, arXiv 1910.07380. The paper shows no calibration; coverage against what was swept is ours.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from lightning_modules.figures.calibration import calibration_plot, sparsification_plot
from lightning_modules.figures.force_maps import frame_strip, uncertainty_panels
from lightning_modules.figures.force_movies import error_over_time, pixel_over_time

PUBLISHED_FRAME_S = 4320.0
"""Of figure 2; of a batch the frame that is nearest in time is shown."""
SWEPT = {
    "module.dropout_rate": "dropout rate",
    "module.growth": "growth",
    "data.salt_image_probability": "share of images with salt",
    "module.draws": "draws",
}
COVERAGES = (0.5, 0.68, 0.9, 0.95)
COVERAGE_COLOURS = ("#9ecae1", "#4292c6", "#2159a6", "#08264f")
SCORES = {
    "test/mae_median_foreground_pa": ("MAE of the median, foreground", "#cb3e38"),
    "test/crps_foreground_pa": ("CRPS, foreground", "#f0a500"),
}
BARS = {"test/mae_median_foreground_pa": "median, foreground", "test/mae_mean_pa": "mean, whole frame"}
BAR_COLOURS = ("#2159a6", "#9ecae1")
SINGLE_PASS = 0.5
"""Where on the axis of draws one pass without dropout stands."""


def published_frame(time_s: np.ndarray) -> int:
    """Which of the times (frames,) is nearest to that of figure 2; NaN is never near.

    >>> published_frame(np.array([np.nan, 0.0, 4320.0, 8640.0]))
    2
    """
    return int(np.argmin(np.nan_to_num(np.abs(time_s - PUBLISHED_FRAME_S), nan=np.inf)))


def force_figures(
    *,
    log_image: np.ndarray,
    log_force: np.ndarray,
    maps: Mapping[str, np.ndarray | None],
    curves: Mapping[str, np.ndarray],
    pixel_size_um: np.ndarray,
    time_s: np.ndarray,
    sample_ids: Sequence[str],
    groups: Sequence[str],
    errors: Mapping[str, np.ndarray],
    cells: Sequence[str],
    pixel: Mapping[str, Any] | None,
) -> dict[str, Figure]:
    """Draw what is known of some frames, and of all frames of their stage.

    Args:
        log_image: (frames, y, x), ln of the grey value.
        log_force: (frames, y, x), ln of the traction in Pa; NaN where unknown.
        maps: (frames, y, x) by the names of `metrics.lognormal_maps.MAPS`, or None.
        curves: `calibration` and `sparsification` of these frames, as `metrics.lognormal_maps.drawn_arrays` has them.
        pixel_size_um: (frames,).
        time_s: (frames,); NaN for a frame of no movie.
        sample_ids: of the frames.
        groups: cell of every frame.
        errors: of all frames of the stage, by name: `time_s`, `mae_mean_pa`, `mae_median_pa`; may be empty.
        cells: of all frames of the stage, their cell.
        pixel: of all frames of the first frame's cell, as `metrics.frame_series.FrameSeries.pixel` has it.

    Returns:
        "uncertainty" (figure 2); of the frames of the first cell, where there are several with a time, "frames"
        (figure 1); "pixel" (figure 3); where truth is known "error" (figure 4), "calibration" and "sparsification".

    """
    image, true_pa = np.exp(log_image), np.exp(log_force)
    frame = published_frame(time_s)
    own: dict[str, np.ndarray | None] = {name: None if part is None else part[frame] for name, part in maps.items()}
    aleatoric, epistemic = own["aleatoric_sd_pa"], own["epistemic_sd_pa"]
    sd_pa = None if aleatoric is None or epistemic is None else np.hypot(aleatoric, epistemic)
    panels = {**own, "image": image[frame], "true_pa": true_pa[frame], "sd_pa": sd_pa}
    time = f", {time_s[frame]:.0f} s" if np.isfinite(time_s[frame]) else ""
    figures = {
        "uncertainty": uncertainty_panels(
            panels, pixel_size_um=float(pixel_size_um[frame]), title=f"{sample_ids[frame]}{time}"
        )
    }
    movie = [i for i, group in enumerate(groups) if group == groups[0] and np.isfinite(time_s[i])]
    movie.sort(key=lambda i: time_s[i])
    if len(movie) > 1:
        mean_pa = maps["mean_pa"]
        assert mean_pa is not None
        cross = None if pixel is None else pixel["pixel"]
        parts = (image[movie], true_pa[movie], mean_pa[movie])
        figures["frames"] = frame_strip(*parts, time_s=time_s[movie], pixel=cross)
    if pixel is not None:
        figures["pixel"] = pixel_over_time(**pixel)
    if np.isfinite(errors.get("mae_mean_pa", np.nan)).any():
        own_errors = {name: errors[f"mae_{name}_pa"] for name in ("mean", "median")}
        figures["error"] = error_over_time(
            own_errors, time_s=errors["time_s"], groups=cells, name="mean absolute error"
        )
    if "calibration" in curves:
        figures["calibration"] = calibration_plot(*curves["calibration"])
    if "sparsification" in curves:  # of the frames shown, which may hold no force where others do
        figures["sparsification"] = sparsification_plot(*curves["sparsification"])
    return figures


# -- runs -------------------------------------------------------------------------------------------------------------


def comparison(runs: Sequence[Mapping[str, Any]]) -> dict[str, Figure]:
    """Draw how right the uncertainty of tested runs is, against what they differ in, and their errors.

    Args:
        runs: mappings with `config` (nested) and `summary`; those without a test are left out.

    Returns:
        "calibration_against_<name>" for dropout rate, growth, share of salt and draws: coverage less its probability,
        and the errors, of all runs with a distribution; where they have at least two values of it.
        "errors": bars of the errors of every run, where there are at least two; above, whole-frame errors that were
        published for its settings.

    """
    tested = [run for run in runs if _number(run, "test/mae_median_foreground_pa") is not None]
    figures = {}
    for key, name in SWEPT.items():
        known = [run for run in tested if _coverage(run, COVERAGES[0]) is not None and _place(run, key) is not None]
        if len({_place(run, key) for run in known}) > 1:
            figures[f"calibration_against_{key.partition('.')[2]}"] = _against(known, key, name)
    if len(tested) > 1:
        figures["errors"] = _errors(tested)
    return figures


def _against(runs: Sequence[Mapping[str, Any]], key: str, name: str) -> Figure:
    """One dot per run, a line through the means at every value."""
    figure = Figure(figsize=(8.6, 3.5), layout="constrained")
    coverage, errors = figure.subplots(1, 2)
    coverage.axhline(0, color="0.6", linewidth=1, linestyle="--")
    for probability, colour in zip(COVERAGES, COVERAGE_COLOURS, strict=True):
        points = [(_place(run, key), _coverage(run, probability)) for run in runs]
        _dots(coverage, [(x, y - probability) for x, y in points if x is not None and y is not None], colour)
        coverage.plot([], [], color=colour, marker="o", markersize=4, label=f"{probability:.0%} interval")
    for metric, (label, colour) in SCORES.items():
        points = [(_place(run, key), _number(run, metric)) for run in runs]
        _dots(errors, [(x, y) for x, y in points if x is not None and y is not None], colour)
        errors.plot([], [], color=colour, marker="o", markersize=4, label=label)
    coverage.set_ylabel("coverage − probability, foreground")
    errors.set_ylabel("Pa")
    errors.set_ylim(bottom=0)
    for ax in (coverage, errors):
        ax.set_xlabel(name)
        ax.legend(frameon=False, fontsize=7.5)
        ax.spines[["top", "right"]].set_visible(False)
        if key == "module.draws":
            places = sorted({place for run in runs if (place := _place(run, key)) is not None})
            ax.set_xscale("log")
            ax.set_xticks(places, ["none" if place == SINGLE_PASS else f"{place:g}" for place in places])
            ax.minorticks_off()
    return figure


def _dots(ax: Axes, points: Sequence[tuple[float, float]], colour: str) -> None:
    ax.plot(*zip(*points, strict=True), "o", color=colour, markersize=4)
    places = sorted({x for x, _ in points})
    means = [float(np.mean([y for x, y in points if x == place])) for place in places]
    ax.plot(places, means, color=colour, linewidth=1.2)


def _errors(runs: Sequence[Mapping[str, Any]]) -> Figure:
    figure = Figure(figsize=(max(4.5, 1.6 + 0.75 * len(runs)), 4.2), layout="constrained")
    ax = figure.subplots()
    for number, (metric, label) in enumerate(BARS.items()):
        x = np.arange(len(runs)) + (number - 0.5) * 0.38
        ax.bar(x, [_number(run, metric) or 0.0 for run in runs], 0.36, color=BAR_COLOURS[number], label=label)
        for place, run in zip(x, runs, strict=True):
            for value in _published(run["config"], metric):
                ax.plot(place, value, "D", color="black", markersize=5, markeredgecolor="white")
    if any(_published(run["config"], metric) for run in runs for metric in BARS):
        ax.plot([], [], "D", color="black", markersize=5, markeredgecolor="white", label="published")
    labels = [_label(run["config"]) for run in runs]
    ax.set_xticks(
        range(len(runs)), [label.replace("$", r"\$") for label in labels], rotation=30, ha="right", fontsize=8
    )
    ax.set_ylabel("mean absolute error (Pa)")
    ax.legend(frameon=False, fontsize=8)
    ax.spines[["top", "right"]].set_visible(False)
    return figure


def _label(config: Mapping[str, Any]) -> str:
    module = config["module"]
    kind = str(module["class_path"]).rpartition(".")[2]
    if kind == "ZeroForce":
        return "no force"
    if kind == "ConstantForce":
        where = "" if module.get("cell_grey") is None else " of the cell"
        return f"{module['statistic']}{where}"
    if module.get("loss") == "squared_error":
        return "deterministic"
    draws = module.get("draws")
    return "Tiramisu, no draws" if draws is None else f"Tiramisu, {draws} draw{'s' if draws != 1 else ''}"


def _place(run: Mapping[str, Any], key: str) -> float | None:
    """Where a run stands on the axis of a setting."""
    section, _, name = key.partition(".")
    part = run["config"].get(section) or {}
    if name not in part:
        return None
    value = part[name]
    if value is None:
        return SINGLE_PASS if key == "module.draws" else None
    return float(value)


def _coverage(run: Mapping[str, Any], probability: float) -> float | None:
    return _number(run, f"test/coverage_{round(100 * probability)}_foreground")


def _number(run: Mapping[str, Any], metric: str) -> float | None:
    value = run["summary"].get(metric)
    return float(value) if value is not None and math.isfinite(value) else None


def _published(config: Mapping[str, Any], metric: str) -> list[float]:
    """What was published for this metric and the settings of a run."""
    found = []
    for entry in config.get("published") or ():
        wanted = entry.get("match") or {}
        known = {key: (config.get(key.partition(".")[0]) or {}).get(key.partition(".")[2]) for key in wanted}
        if entry["metric"] == metric and known == dict(wanted):
            found.append(float(entry["value"]))
    return found
