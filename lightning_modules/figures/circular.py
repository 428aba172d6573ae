"""Figures of the paper `circular`: directions on images, errors around the circle, and runs beside the printed tables.

Bruns et al., arXiv 2406.19162 (2024): example images with their direction (figure 1), configurations (Table 3),
backbones (Table 4), test-time augmentation (Table 5). Angles are radians, counter-clockwise as displayed: an arrow's
tip lies at (cos, -sin) in image coordinates, whose y points down.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patheffects import withStroke

TARGET_COLOUR = "#ffb000"
PREDICTION_COLOUR = "#38b6ff"
OURS_COLOUR = "#2f6690"
LIMIT_COLOUR = "#2a9d5c"
PUBLISHED_COLOURS = ("#c8553d", "#7b4b94", "#8a6d1d")
LINE_COLOURS = ("#2f6690", "#c8553d", "#2a9d5c", "#7b4b94", "#d69f00", "#4ca6c9", "#8a6d1d", "#d16ba5", "#5b5b5b")
TEST, VALIDATION = "test/angular_error_deg", "val/angular_error_deg"
CHANCE_DEG = 90.0
MOST_GROUPS = 24

TABLE_3_ORDER = (
    "angle-cyclic-linear",
    "angle-cyclic-linear_squared",
    "angle-cyclic-cyclic",
    "angle-cyclic-cyclic_squared",
    "angle-cyclic-cosine",
    "circle-identity-distance",
    "circle-identity-distance_squared",
    "circle-sigmoid-distance",
    "circle-sigmoid-distance_squared",
)
BACKBONE_ORDER = ("probing_cnn", "yolov8_n", "efficientnet_v2_s", "resnet50")
SETTINGS = ("seed", "module", "data", "trainer")
NOT_A_SETTING = ("data.data_root", "data.num_workers")
FOLD = "data.split"  # folds of one setting differ in the number at its end alone


def direction_panel(
    images: np.ndarray,
    target_rad: np.ndarray,
    prediction_rad: np.ndarray,
    *,
    sample_ids: Sequence[str] | None = None,
    columns: int = 4,
    most: int = 12,
) -> Figure:
    """Draw true and predicted directions as arrows on the images.

    Args:
        images: (n, y, x), any grey scale.
        target_rad: (n,) radians; no arrow where NaN.
        prediction_rad: (n,) radians.
        sample_ids: n titles; the error in degrees stands below them.
        columns: images in a row.
        most: at most this many images are drawn, the first ones.

    Returns:
        The figure; a legend names the two arrows.

    """
    shown = min(len(images), most)
    figure, axes = _grid(shown, columns, cell_inches=1.9)
    for i, ax in enumerate(axes):
        _show(ax, images[i])
        _arrow(ax, images[i].shape, target_rad[i], TARGET_COLOUR, 3.2)
        _arrow(ax, images[i].shape, prediction_rad[i], PREDICTION_COLOUR, 1.8)
        error = abs(_signed_error_deg(prediction_rad[i], target_rad[i]))
        title = sample_ids[i] if sample_ids is not None else f"#{i}"
        ax.set_title(title if math.isnan(error) else f"{title}\n{error:.0f}° off", fontsize=8)
    handles = [
        Line2D([], [], color=TARGET_COLOUR, linewidth=3.2, label="true direction"),
        Line2D([], [], color=PREDICTION_COLOUR, linewidth=1.8, label="predicted"),
    ]
    figure.legend(handles=handles, loc="outside lower center", ncols=2, frameon=False, fontsize=9)
    return figure


def polar_error(target_rad: np.ndarray, prediction_rad: np.ndarray) -> Figure:
    """Signed error against the true direction around the circle, and the distribution of its size.

    Args:
        target_rad: (n,) radians; NaN is left out.
        prediction_rad: (n,) radians.

    Returns:
        Left, one dot per image at its true direction, on the ring labelled 0 when it is right, outside it when the
        prediction lies counter-clockwise of the truth. Right, the histogram of |error| with the mean and chance.

    """
    known = np.isfinite(target_rad) & np.isfinite(prediction_rad)
    error = _signed_error_deg(prediction_rad[known], target_rad[known])
    size = np.abs(error)
    figure = Figure(figsize=(8.6, 4.2), layout="constrained")
    ring = figure.add_subplot(1, 2, 1, projection="polar")
    turn = np.linspace(0, 2 * math.pi, 361)
    ring.plot(turn, np.zeros_like(turn), color="0.35", linewidth=1.2)
    ring.scatter(target_rad[known], error, c=size, cmap="plasma", vmin=0, vmax=180, s=22, alpha=0.85, linewidths=0)
    ring.set_ylim(-200, 180)
    ring.set_yticks([-90, 0, 90], ["−90°", "0", "+90°"], fontsize=8)
    ring.set_rlabel_position(112)
    for label in ring.get_yticklabels():
        label.set_path_effects([withStroke(linewidth=2.5, foreground="white")])
        label.set_zorder(5)
    ring.tick_params(axis="x", labelsize=8, pad=1)
    ring.grid(color="0.88")
    ring.spines["polar"].set_color("0.7")
    ring.set_title("signed error at the true direction", fontsize=10, pad=14)
    histogram = figure.add_subplot(1, 2, 2)
    histogram.hist(size, bins=np.linspace(0, 180, 19), color=OURS_COLOUR, edgecolor="white")
    histogram.axvline(CHANCE_DEG, color="0.6", linestyle=":", label="chance 90°")
    if len(size):
        histogram.axvline(size.mean(), color=PUBLISHED_COLOURS[0], label=f"mean {size.mean():.1f}°")
    histogram.set(xlabel="angular error (degrees)", ylabel="images", xlim=(0, 180), xticks=range(0, 181, 45))
    histogram.legend(frameon=False, fontsize=9)
    _plain(histogram)
    return figure


def contact_sheet(samples: Sequence[Any], *, columns: int = 6, most: int = 36) -> Figure:
    """Samples of a data set with their direction.

    Args:
        samples: objects with `sample_id` and `fields` {"image": (1, y, x), "angle_rad": radians}.
        columns: images in a row.
        most: at most this many are drawn, the first ones.

    """
    shown = list(samples)[:most]
    figure, axes = _grid(len(shown), columns, cell_inches=1.6)
    for ax, sample in zip(axes, shown, strict=True):
        image = np.asarray(sample.fields["image"])[0]
        angle = float(sample.fields["angle_rad"])
        _show(ax, image)
        _arrow(ax, image.shape, angle, TARGET_COLOUR, 1.7)
        unknown = math.isnan(angle)
        ax.set_title(f"{sample.sample_id}\n{'?' if unknown else f'{math.degrees(angle):.0f}°'}", fontsize=7)
    return figure


def comparison(runs: Sequence[Mapping[str, Any]]) -> dict[str, Figure]:
    """Draw the paper's tables from runs, beside what the paper printed and the best that any method could reach.

    Args:
        runs: mappings with `run_id`, `config` (nested), `summary`, `history` and `irreducible_error`. Runs that differ
            only in the number at the end of `data.split` are folds of one setting: their mean and population standard
            deviation are drawn, as in the paper.

    Returns:
        "angular_error" (bars in the order of Table 3; the test split if every run has it, else validation),
        "test_time_augmentation" (error against the number of views) and "learning_curves", each only if the runs have
        its numbers.

    """
    groups = _groups(runs)
    figures = {}
    tested = all(TEST in run["summary"] for group in groups for run in group.runs)
    metric = TEST if tested else VALIDATION
    measured = [group for group in groups if group.values(metric)]
    if measured:
        figures["angular_error"] = _bars(measured, metric)
    if any(len(group.views()) > 1 for group in groups):
        figures["test_time_augmentation"] = _views_figure([group for group in groups if len(group.views()) > 1])
    trained = [group for group in groups if len(_curve(group.runs)[0])]
    if trained:
        figures["learning_curves"] = _learning_curves(trained)
    return figures


class _Group(NamedTuple):
    """Runs that differ in the split alone."""

    label: str
    runs: list[Mapping[str, Any]]

    def values(self, metric: str) -> list[float]:
        return [run["summary"][metric] for run in self.runs if metric in run["summary"]]

    def views(self) -> dict[int, list[float]]:
        """Number of views -> test errors of the runs."""
        names = {name for run in self.runs for name in run["summary"]}
        numbers = {int(match[1] or 1) for name in names if (match := re.fullmatch(rf"{TEST}(?:_tta(\d+))?", name))}
        return {views: self.values(_views_name(views)) for views in sorted(numbers)}

    def published(self, metric: str) -> Iterator[tuple[str, float, float]]:
        """Table, value and standard deviation of what the paper printed for this setting."""
        settings = _flat(self.runs[0]["config"])
        for entry in self.runs[0]["config"].get("published") or ():
            agrees = all(settings.get(key) == value for key, value in (entry.get("match") or {}).items())
            if agrees and entry["metric"].rpartition("/")[2] == metric.rpartition("/")[2]:
                yield str(entry["table"]), float(entry["value"]), float(entry.get("sd") or 0.0)

    def limit(self) -> float | None:
        """Angular error that no method can beat on this data, if the data set states one."""
        limit = self.runs[0].get("irreducible_error")
        return limit["value"] if limit and limit["metric"].rpartition("/")[2] == "angular_error_deg" else None


def _groups(runs: Sequence[Mapping[str, Any]]) -> list[_Group]:
    """Gather folds, name every setting by what sets it apart, and order as Table 3 does."""
    gathered: dict[str, list[Mapping[str, Any]]] = {}
    for run in runs:
        settings = _settings(run)
        gathered.setdefault(json.dumps(settings, sort_keys=True, default=str), []).append(run)
    members = sorted(gathered.values(), key=lambda group: _order(group[0]))
    names = _names([group[0]["config"]["module"] for group in members])
    labels = []
    for group, name in zip(members, names, strict=True):
        twins = [_settings(other[0]) for other, twin in zip(members, names, strict=True) if twin == name]
        own = _settings(group[0])
        apart = [key for key in own if len({json.dumps(twin.get(key), default=str) for twin in twins}) > 1]
        labels.append(", ".join([name, *(f"{key.rpartition('.')[2]} {own[key]}" for key in apart)]))
    return [_Group(label, group) for label, group in zip(labels, members, strict=True)]


def _settings(run: Mapping[str, Any]) -> dict[str, Any]:
    settings = _flat({section: run["config"].get(section) for section in SETTINGS})
    settings[FOLD] = str(settings.get(FOLD, "")).rstrip("0123456789")
    return {key: value for key, value in settings.items() if key not in NOT_A_SETTING}


def _flat(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested mapping -> {dotted key: value}."""
    flat: dict[str, Any] = {}
    for key, value in config.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
    return flat


def _names(modules: Sequence[Mapping[str, Any]]) -> list[str]:
    """Backbone and configuration of every setting, without the one that all share."""
    regressions = [module for module in modules if "configuration" in module]
    parts = [part for part in ("backbone", "configuration") if len({module[part] for module in regressions}) > 1]
    names = []
    for module in modules:
        named = [module[part] for part in parts or ["configuration"]] if module in regressions else ["four quadrants"]
        names.append(", ".join(named).replace("_squared", "²").replace("-", " · "))
    return names


def _order(run: Mapping[str, Any]) -> tuple[int, int, str]:
    """Table 4's backbones in turn, each in the order of Table 3; the baseline first."""
    configuration, backbone = (run["config"]["module"].get(part) for part in ("configuration", "backbone"))
    row = TABLE_3_ORDER.index(configuration) if configuration in TABLE_3_ORDER else len(TABLE_3_ORDER)
    column = BACKBONE_ORDER.index(backbone) if backbone in BACKBONE_ORDER else -1
    return column, row, json.dumps(_settings(run), sort_keys=True, default=str)


def _bars(groups: list[_Group], metric: str) -> Figure:
    """Horizontal bars, one per setting, with the printed numbers and the limit of the data."""
    total = len(groups)
    if total > MOST_GROUPS:
        best = sorted(groups, key=lambda group: float(np.mean(group.values(metric))))[:MOST_GROUPS]
        groups = [group for group in groups if group in best]
    figure = Figure(figsize=(8.2, 1.7 + 0.36 * len(groups)), layout="constrained")
    ax = figure.add_subplot()
    tables = list(dict.fromkeys(table for group in groups for table, _, _ in group.published(metric)))
    reach, handles = 0.0, [Line2D([], [], color=OURS_COLOUR, linewidth=7, label="runs (mean, sd over folds)")]
    for row, group in enumerate(groups):
        values = np.array(group.values(metric))
        mean, sd = values.mean(), values.std()
        ax.barh(row, mean, height=0.62, color=OURS_COLOUR, alpha=0.9)
        if len(values) > 1:
            ax.errorbar(mean, row, xerr=sd, color="0.15", capsize=3, linewidth=1.2)
        text = f"{mean:.1f} ± {sd:.1f} ({len(values)} folds)" if len(values) > 1 else f"{mean:.1f}"
        right = mean + sd
        for table, value, spread in group.published(metric):
            colour = PUBLISHED_COLOURS[tables.index(table) % len(PUBLISHED_COLOURS)]
            ax.errorbar(
                value, row, xerr=spread, fmt="D", markersize=6, color=colour, markeredgecolor="white", capsize=2
            )
            right = max(right, value + spread)
        if (limit := group.limit()) is not None:
            ax.plot([limit, limit], [row - 0.38, row + 0.38], color=LIMIT_COLOUR, linewidth=2.6, solid_capstyle="butt")
            right = max(right, limit)
        ax.annotate(text, (right, row), xytext=(5, 0), textcoords="offset points", va="center", fontsize=8)
        reach = max(reach, right)
    for i, table in enumerate(tables):
        colour = PUBLISHED_COLOURS[i % len(PUBLISHED_COLOURS)]
        handles.append(Line2D([], [], color=colour, marker="D", markersize=5, label=f"paper, {table}"))
    if any(group.limit() is not None for group in groups):
        handles.append(Line2D([], [], color=LIMIT_COLOUR, linewidth=2.6, label="best possible on this data"))
    if reach > 0.6 * CHANCE_DEG:
        ax.axvline(CHANCE_DEG, color="0.6", linestyle=":", zorder=0)
        handles.append(Line2D([], [], color="0.6", linestyle=":", label="chance"))
    ax.set_yticks(range(len(groups)), [group.label for group in groups], fontsize=8)
    ax.invert_yaxis()
    ax.set(xlim=(0, 1.28 * reach), xlabel=f"angular error, {metric.partition('/')[0]} split (degrees)")
    if total > len(groups):
        ax.set_title(f"the best {len(groups)} of {total} settings", fontsize=10)
    figure.legend(handles=handles, loc="outside upper center", ncols=min(3, len(handles)), frameon=False, fontsize=8)
    _plain(ax)
    return figure


def _views_figure(groups: list[_Group]) -> Figure:
    """Table 5: error against the number of views, with the printed numbers."""
    figure = Figure(figsize=(8.2, 4.2), layout="constrained")
    ax = figure.add_subplot()
    printed: dict[str, dict[int, tuple[float, float]]] = {}
    for i, group in enumerate(groups):
        views = group.views()
        means, sds = [np.mean(v) for v in views.values()], [np.std(v) for v in views.values()]
        colour = LINE_COLOURS[i % len(LINE_COLOURS)]
        ax.errorbar(list(views), means, yerr=sds, marker="o", color=colour, capsize=3, label=group.label)
        for n in views:
            for table, value, sd in group.published(_views_name(n)):
                printed.setdefault(table, {})[n] = (value, sd)
    for shade, (table, points) in zip(("0.2", "0.45", "0.65"), printed.items(), strict=False):
        values, sds = zip(*points.values(), strict=True)
        style = {"fmt": "D--", "markersize": 5, "linewidth": 1, "capsize": 2, "color": shade}
        ax.errorbar(list(points), values, yerr=sds, label=f"paper, {table}", **style)
    ax.set(xlabel="views (image and its rotations)", ylabel="angular error, test split (degrees)")
    ax.set_xticks(sorted({n for group in groups for n in group.views()}))
    figure.legend(loc="outside right upper", frameon=False, fontsize=8)
    _plain(ax)
    return figure


def _views_name(views: int) -> str:
    return TEST if views == 1 else f"{TEST}_tta{views}"


def _learning_curves(groups: list[_Group]) -> Figure:
    """Validation error against the epoch: mean over folds, a band of one standard deviation, a colour per setting."""
    figure = Figure(figsize=(8.2, 4.4), layout="constrained")
    ax = figure.add_subplot()
    for i, group in enumerate(groups):
        epochs, mean, sd = _curve(group.runs)
        named = i < len(LINE_COLOURS)
        style = {"color": LINE_COLOURS[i] if named else "0.8", "zorder": 3 if named else 1}
        marker = "o" if len(epochs) == 1 else None
        ax.plot(epochs, mean, linewidth=1.6, label=group.label if named else None, marker=marker, **style)
        ax.fill_between(epochs, mean - sd, mean + sd, alpha=0.2, linewidth=0, **style)
    ax.axhline(CHANCE_DEG, color="0.6", linestyle=":", zorder=0, label="chance")
    for limit in {limit for group in groups if (limit := group.limit()) is not None}:
        ax.axhline(limit, color=LIMIT_COLOUR, linestyle="--", zorder=0, label=f"best possible {limit:.1f}°")
    ax.set(xlabel="epoch", ylabel="angular error, val split (degrees)", ylim=(0, None))
    figure.legend(loc="outside right upper", frameon=False, fontsize=8)
    _plain(ax)
    return figure


def _curve(runs: Sequence[Mapping[str, Any]]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Epochs that any run has validated, with mean and deviation of the error over the runs that did."""
    by_epoch: dict[float, list[float]] = {}
    for run in runs:
        for row in run["history"]:
            if VALIDATION in row and "epoch" in row:
                by_epoch.setdefault(row["epoch"], []).append(row[VALIDATION])
    epochs = sorted(by_epoch)
    errors = [by_epoch[epoch] for epoch in epochs]
    return np.array(epochs), np.array([np.mean(e) for e in errors]), np.array([np.std(e) for e in errors])


def _signed_error_deg(prediction_rad: np.ndarray, target_rad: np.ndarray) -> np.ndarray:
    """Shorter arc from target to prediction in degrees, positive counter-clockwise."""
    return np.degrees(np.angle(np.exp(1j * (np.asarray(prediction_rad) - np.asarray(target_rad)))))


def _grid(count: int, columns: int, *, cell_inches: float) -> tuple[Figure, list[Axes]]:
    columns = max(1, min(columns, count))
    rows = max(1, math.ceil(count / columns))
    figure = Figure(figsize=(columns * cell_inches, rows * (cell_inches + 0.35) + 0.3), layout="constrained")
    return figure, [figure.add_subplot(rows, columns, i + 1) for i in range(count)]


def _show(ax: Axes, image: np.ndarray) -> None:
    low, high = np.percentile(image, (0.5, 99.5))
    ax.imshow(image, cmap="gray", vmin=low, vmax=max(high, low + 1e-6))
    ax.set_axis_off()


def _arrow(ax: Axes, shape: tuple[int, ...], angle_rad: float, colour: str, width: float) -> None:
    """Arrow from the image's centre; up on the page for a quarter turn."""
    if not math.isfinite(angle_rad):
        return
    centre = ((shape[1] - 1) / 2, (shape[0] - 1) / 2)
    length = 0.42 * min(shape[:2])
    tip = (centre[0] + length * math.cos(angle_rad), centre[1] - length * math.sin(angle_rad))
    outline = [withStroke(linewidth=width + 1.4, foreground="black")]
    style = {"arrowstyle": "-|>", "color": colour, "linewidth": width, "mutation_scale": 11, "shrinkA": 0, "shrinkB": 0}
    ax.annotate("", tip, centre, arrowprops={**style, "path_effects": outline})


def _plain(ax: Axes) -> None:
    ax.spines[["top", "right"]].set_visible(False)
