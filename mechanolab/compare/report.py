"""One self-contained HTML page, a CSV and a Markdown table of any set of runs.

The page loads nothing from anywhere: figures are inlined, its few lines of script sort the tables.
"""

from __future__ import annotations

import base64
import importlib
import io
import json
import time
import webbrowser
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import yaml
from jinja2 import Environment, PackageLoader, StrictUndefined
from matplotlib.figure import Figure

from mechanolab.compare.curves import DARK, LIGHT, learning_curves, settings
from mechanolab.compare.formats import columns, csv_text, markdown, print_tables, write_text
from mechanolab.compare.table import Comparison, compare_runs, family, find
from mechanolab.config import runs_root
from mechanolab.runs import Run, read_config, read_status

DPI = 144
IMAGES = 12
"""Images of the best run that are shown, the newest ones."""
IMAGE_BYTES = 4_000_000


class Report(NamedTuple):
    """Where a comparison was written."""

    html: Path
    csv: Path
    markdown: Path


class Picture(NamedTuple):
    """An image as the page holds it; `dark` is empty for one that is drawn on white."""

    name: str
    light: str
    dark: str
    width_px: int


def compare(names: Sequence[str], *, out: Path | None = None, open_report: bool = False, exact: bool = False) -> Report:
    """Compare experiments, sweeps and single runs: print the tables, write the report.

    Args:
        names: experiments with the variants that are based on them, sweeps, run folders (or `<experiment>/<run id>`).
        out: folder of the report; `reports/<names>/` in the runs' folder when left out.
        open_report: show the page in a browser.
        exact: leave out the variants of the experiments.

    Raises:
        RequestError: a name that no run has.
    """
    runs, not_started = find(names, exact=exact)
    short = [Path(name).name for name in names]
    variants = [] if exact else list(dict.fromkeys(v for name in names for v in family(name) if v not in names))
    title = ", ".join(short) + (f" with its variants {', '.join(variants)}" if variants else "")
    report = report_runs(runs, name="-".join(short), title=title, out=out, not_started=not_started)
    if open_report:
        webbrowser.open(report.html.absolute().as_uri())
    return report


def report_runs(
    runs: Sequence[Run],
    *,
    name: str,
    title: str,
    out: Path | None = None,
    not_started: int = 0,
    monitor: Mapping[str, str] | None = None,
) -> Report:
    """Print the tables of these runs, write table.csv, table.md and report.html, and print where.

    Args:
        runs: at least one.
        name: of the report's folder.
        title: of the page.
        out: folder of the report; `reports/<name>/` in the runs' folder when left out.
        not_started: trials of a sweep that are still to come.
        monitor: {metric, mode} to rank by; what the first run monitors when left out.
    """
    folder = out if out is not None else runs_root() / "reports" / name
    folder.mkdir(parents=True, exist_ok=True)
    comparison = compare_runs(runs, title=title, not_started=not_started, monitor=monitor)
    report = Report(folder / "report.html", folder / "table.csv", folder / "table.md")
    write_text(report.csv, csv_text(comparison))
    write_text(report.markdown, markdown(comparison))
    write_text(report.html, html(comparison))
    print_tables(comparison)
    print(f"report: {report.html}")
    return report


def html(comparison: Comparison) -> str:
    """The page."""
    environment = Environment(
        loader=PackageLoader("mechanolab.compare", "."), autoescape=True, undefined=StrictUndefined,
        trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    best = comparison.best
    own, notes = own_figures(comparison)
    return environment.get_template("report.html.j2").render(
        title=comparison.title,
        written=time.strftime("%Y-%m-%d %H:%M"),
        states=comparison.states(),
        metric=comparison.metric,
        facts=headline(comparison),
        tables=[
            (caption, columns(comparison, folds=folds), [row.state for row in rows])
            for caption, folds, rows in (
                ("Over folds: mean ± population standard deviation", True, comparison.folds),
                ("Runs", False, comparison.rows),
            )
            if rows
        ],
        failures=[(row.name, row.reason) for row in comparison.rows if row.state == "failed" and row.reason],
        curves=_themed("learning curves", [learning_curves(comparison, theme) for theme in (LIGHT, DARK)]),
        settings=[
            picture
            for light, dark in zip(settings(comparison, LIGHT), settings(comparison, DARK), strict=True)
            for picture in _themed(light[0], [light[1], dark[1]])
        ],
        own=own,
        notes=notes,
        best=best,
        best_images=run_images(best.run) if best and best.run else [],
        best_config=yaml.safe_dump(best.run.config, sort_keys=False, allow_unicode=True) if best and best.run else "",
        best_environment=_environment(best.run) if best and best.run else "",
    )


def headline(comparison: Comparison) -> list[tuple[str, str, str]]:
    """What the page says first: (what, number, remark)."""
    best = comparison.best
    if best is None:
        return []
    facts = [(f"best {comparison.metric}", str(best.scores["best"]), f"{best.name}, {best.state}")]
    for metric in comparison.tests:
        if metric in best.scores and not metric.endswith("/loss"):
            facts.append((metric, str(best.scores[metric]), f"of {best.name}"))
    if comparison.folds:
        winner = comparison.folds[0]
        by_test = comparison.metric.startswith("test/")
        order = ("best", *comparison.tests) if by_test else (*comparison.tests, "best")
        tested = [m for m in order if m in winner.scores and not m.endswith("/loss")]
        if tested:
            named = f"best {comparison.metric}" if tested[0] == "best" else tested[0]
            facts.append((f"{named} over folds", str(winner.scores[tested[0]]), f"{winner.name}, n = {winner.state}"))
    possible = best.run.irreducible_error if best.run else None
    if best.ratio == best.ratio and possible:
        remark = f"best possible {possible['value']:.4g} ({possible.get('how', possible['metric'])})"
        facts.append(("model / best possible", f"{best.ratio:.2f}", remark))
    for entry in comparison.folds[0].published if comparison.folds else best.published:
        if entry.metric in (comparison.metric, *comparison.tests):
            facts.append((f"published {entry.metric}", str(entry.score), f"{entry.table} {entry.label}".strip()))
    return facts


# -- figures ----------------------------------------------------------------------------------------------------------


def own_figures(comparison: Comparison) -> tuple[list[Picture], list[str]]:
    """The paper's own figures of these runs, from `lightning_modules.figures.<stem>.comparison`, and what went wrong.

    A figure that cannot be drawn from these runs must not cost the table: its error becomes a note on the page.
    """
    pictures: list[Picture] = []
    notes: list[str] = []
    for stem in dict.fromkeys(_stem(row.run) for row in comparison.rows if row.run):
        module_name = f"lightning_modules.figures.{stem}"
        try:
            draw = getattr(importlib.import_module(module_name), "comparison", None)
        except ModuleNotFoundError as error:
            if error.name not in (module_name, "lightning_modules.figures"):
                raise
            continue
        if draw is None:
            continue
        runs = [
            as_mapping(row.run) for row in comparison.rows if row.run and _stem(row.run) == stem and row.run.history
        ]
        try:
            figures = draw(runs) if runs else {}
        except Exception as error:
            notes.append(f"{module_name}.comparison could not draw these runs: {type(error).__name__}: {error}")
            continue
        pictures += [_paper(name, figure) for name, figure in figures.items()]
    return pictures, notes


def as_mapping(run: Run) -> dict[str, Any]:
    """A run as `comparison(runs)` of a paper's figures takes it."""
    return {
        "run_id": run.run_id,
        "folder": run.path,
        "config": run.config,
        "summary": run.summary,
        "history": run.history,
        "irreducible_error": run.irreducible_error,
        "parameters": run.status.get("parameters"),
        "tested_run": run.status.get("tested_run"),
        "trained_config": _trained_config(run),
    }


def _trained_config(run: Run) -> dict[str, Any] | None:
    """What the weights of a run were trained with: of a recorded test the settings of the run that it tested.

    None where nothing was trained, and where the tested run is not there any more.
    """
    if "tested_run" not in run.status:
        return run.config
    config, tested = None, run.status["tested_run"]
    while tested is not None:  # a test may have been asked for by the name of another test
        folder = run.path.parent / str(tested)
        if not (folder / "config.yaml").is_file():
            return None
        config, tested = read_config(folder), read_status(folder).get("tested_run")
    return config


def _stem(run: Run) -> str:
    return str(run.config.get("module", {}).get("class_path", ".")).split(".")[1]


def run_images(run: Run) -> list[Picture]:
    """The newest images in a run's figures folder, in the order of their names."""
    found = [path for path in (run.path / "figures").glob("*.png") if path.stat().st_size <= IMAGE_BYTES]
    newest = sorted(found, key=lambda path: path.stat().st_mtime, reverse=True)[:IMAGES]
    return [Picture(path.stem, _data_uri(path.read_bytes()), "", 0) for path in sorted(newest)]


def _paper(name: str, figure: Figure) -> Picture:
    return Picture(name, _data_uri(_png(figure)), "", int(figure.get_figwidth() * 96))


def _themed(name: str, figures: Sequence[Figure | None]) -> list[Picture]:
    light, dark = figures
    if light is None or dark is None:
        return []
    return [Picture(name, _data_uri(_png(light)), _data_uri(_png(dark)), int(light.get_figwidth() * 96))]


def _png(figure: Figure) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=DPI)
    return buffer.getvalue()


def _data_uri(content: bytes) -> str:
    return "data:image/png;base64," + base64.b64encode(content).decode("ascii")


def _environment(run: Run) -> str:
    try:
        facts = json.loads((run.path / "environment.json").read_text(encoding="utf-8"))
    except (OSError, json.JSONDecodeError):
        return ""
    return json.dumps(facts, indent=2, ensure_ascii=False)
