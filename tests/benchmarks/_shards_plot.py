"""The picture of the shard benchmark: a panel per kind of sample and number of workers, bars on a logarithmic axis."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

STATES = {
    "later": ("page cache warm, later epochs", "#1b6ca8"),
    "first": ("page cache warm, first epoch", "#7fb7d9"),
    "cold": ("page cache cold, first epoch", "#d98f4e"),
}
BAR = 0.27


def draw(rows: list[dict[str, Any]], stores: list[str], path: Path) -> None:
    """Draw the reading rows of the table.

    Args:
        rows: Of the table; those without a rate are marked as not installed.
        stores: Names from top to bottom.
        path: Of the PNG.
    """
    reading = [row for row in rows if row["store"] in stores]
    kinds = list(dict.fromkeys(row["samples"] for row in reading))
    workers = list(dict.fromkeys(row["workers"] for row in reading))
    rates = [row[f"{state}: samples/s"] for row in reading for state in STATES if f"{state}: samples/s" in row]
    figure = Figure(figsize=(13, 0.62 * len(stores) * len(kinds) + 1.6), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(len(kinds), len(workers), sharex=True, sharey=True, squeeze=False)
    for line, kind in enumerate(kinds):
        for column, count in enumerate(workers):
            panel = axes[line][column]
            chosen = {row["store"]: row for row in reading if (row["samples"], row["workers"]) == (kind, count)}
            _fill(panel, chosen, stores, min(rates) / 2)
            panel.set_title(f"{kind} float32, {count} workers", fontsize=11)
            panel.set_xlim(min(rates) / 2, max(rates) * 2.6)
    for panel in axes[-1]:
        panel.set_xlabel("samples per second")
    handles, labels = axes[0][0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(STATES), frameon=False)
    figure.savefig(path, dpi=110)


def _fill(panel: Any, rows: dict[str, dict[str, Any]], stores: list[str], left: float) -> None:
    for slot, (state, (label, colour)) in enumerate(STATES.items()):
        key = f"{state}: samples/s"
        places = [place + (slot - 1) * BAR for place, store in enumerate(stores) if key in rows[store]]
        values = [rows[store][key] for store in stores if key in rows[store]]
        bars = panel.barh(places, values, height=BAR, color=colour, label=label)
        panel.bar_label(bars, [f"{value:,.0f}" for value in values], padding=3, fontsize=8)
    for place, store in enumerate(stores):
        if f"{next(iter(STATES))}: samples/s" not in rows[store]:
            panel.text(left * 1.1, place, "not installed", va="center", fontsize=8, color="grey")
    panel.set_xscale("log")
    panel.set_yticks(range(len(stores)), stores)
    panel.set_ylim(len(stores) - 0.5, -0.5)
    panel.grid(axis="x", alpha=0.3)
    panel.set_axisbelow(True)
    panel.spines[["top", "right"]].set_visible(False)
