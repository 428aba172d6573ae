"""A comparison as a terminal table, Markdown and CSV.

For readers, what the paper printed stands in one column behind the metric that it belongs to; in the CSV every printed
number has columns of its own, in full precision.
"""

from __future__ import annotations

import csv
import io
import json
import math
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from mechanolab.compare.table import Comparison, Row, Score
from mechanolab.sweeps.progress import duration, short_names

ABSENT = "–"


@dataclass(frozen=True)
class Column:
    """One column of a table for readers."""

    heading: str
    texts: list[str]
    keys: Sequence[float | str]
    """What each cell sorts by; NaN goes last."""
    numeric: bool = True


def columns(comparison: Comparison, *, folds: bool) -> list[Column]:
    """The columns of the table of single runs, or of the one over folds.

    Args:
        comparison: the tables.
        folds: the table over folds instead of the one of single runs.
    """
    rows = comparison.folds if folds else comparison.rows
    paths = list(rows[0].parameters if rows else ())
    names = short_names(paths)
    found = [] if folds else [_words("run", [row.name for row in rows])]
    for path in paths:
        values = [row.parameters[path] for row in rows]
        numeric = all(isinstance(v, (int, float)) and not isinstance(v, bool) for v in values)
        texts = [_text(value) for value in values]
        found.append(Column(names[path], texts, list(values) if numeric else list(texts), numeric))
    found.append(_words("folds" if folds else "state", [row.state for row in rows]))
    printed = folds or not comparison.folds  # the papers print means over folds
    tests = [metric for metric in comparison.tests if metric != "test/loss"] or comparison.tests
    if comparison.metric:
        found.append(_scores(f"best {comparison.metric}", [row.scores.get("best") for row in rows]))
        found += _printed(rows, comparison.metric) if printed else []
    for metric in tests:
        found.append(_scores(metric, [row.scores.get(metric) for row in rows]))
        found += _printed(rows, metric) if printed else []
    if any(math.isfinite(row.ratio) for row in rows):
        found.append(_scores("model / best possible", [Score(row.ratio) for row in rows]))
    if printed:
        for metric in sorted({e.metric for row in rows for e in row.published} - {comparison.metric, *tests}):
            found += _printed(rows, metric, missing=True)
    if not folds:
        found.append(_numbers("epochs", [row.epochs for row in rows]))
        found.append(_numbers("steps", [row.steps for row in rows]))
    found.append(Column("time", [duration(row.seconds) for row in rows], [row.seconds for row in rows]))
    return found


def _words(heading: str, texts: list[str]) -> Column:
    return Column(heading, texts, list(texts), numeric=False)


def _scores(heading: str, scores: Sequence[Score | None]) -> Column:
    texts = [str(score) if score else ABSENT for score in scores]
    return Column(heading, texts, [score.value if score else math.nan for score in scores])


def _numbers(heading: str, counts: Sequence[int | None]) -> Column:
    texts = [ABSENT if count is None else str(count) for count in counts]
    return Column(heading, texts, [math.nan if count is None else count for count in counts])


def _printed(rows: Sequence[Row], metric: str, *, missing: bool = False) -> list[Column]:
    """What the paper printed of a metric: one column, or none."""
    entries = [[entry for entry in row.published if entry.metric == metric] for row in rows]
    tables = sorted({entry.table for line in entries for entry in line})
    if not tables:
        return []
    one = len(tables) == 1
    texts = []
    for line in entries:
        labels = [" ".join(w for w in (e.label, "" if one else f"({e.table})") if w) for e in line]
        texts.append(", ".join(f"{e.score} {label}".strip() for e, label in zip(line, labels, strict=True)) or ABSENT)
    heading = f"published {metric}" if missing else "published"
    keys = [line[0].score.value if line else math.nan for line in entries]
    return [Column(f"{heading} ({tables[0]})" if one else heading, texts, keys)]


def _text(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    return json.dumps(value) if isinstance(value, (list, dict)) else str(value)


# -- the formats ------------------------------------------------------------------------------------------------------


def print_tables(comparison: Comparison) -> None:
    """Print the tables; plain and in full width where the output is not a terminal."""
    terminal = sys.stdout.isatty()
    console = Console(width=None if terminal else 1000, highlight=False)
    for folds in (True, False):
        found = columns(comparison, folds=folds)
        rows = comparison.folds if folds else comparison.rows
        if not rows:
            continue
        title = "over folds: mean ± population standard deviation" if folds else comparison.title
        table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD if terminal else None, pad_edge=False)
        for column in found:
            table.add_column(column.heading, justify="right" if column.numeric else "left", overflow="fold")
        for texts in zip(*(column.texts for column in found), strict=True):
            table.add_row(*texts)
        if terminal:
            console.print(table, markup=False)
        else:
            _print_plain(title, found)
    for row in comparison.rows:
        if row.state == "failed" and row.reason:
            console.print(f"{row.name} failed: {row.reason}", markup=False, soft_wrap=True)


def _print_plain(title: str, found: Sequence[Column]) -> None:
    widths = [max(len(text) for text in (column.heading, *column.texts)) for column in found]
    lines = [[column.heading for column in found], *zip(*(column.texts for column in found), strict=True)]
    print(title)
    for line in lines:
        cells = [
            text.rjust(width) if column.numeric else text.ljust(width)
            for text, width, column in zip(line, widths, found, strict=True)
        ]
        print("  ".join(cells).rstrip())
    print()


def markdown(comparison: Comparison) -> str:
    """The tables as GitHub reads them."""
    parts = [f"# {comparison.title}\n"]
    for folds in (True, False):
        found = columns(comparison, folds=folds)
        if comparison.folds if folds else comparison.rows:
            headings = [column.heading for column in found]
            rules = ["---:" if column.numeric else "---" for column in found]
            lines = [headings, rules, *zip(*(column.texts for column in found), strict=True)]
            parts.append("".join(f"| {' | '.join(_escaped(line))} |\n" for line in lines))
    return "\n".join(parts)


def _escaped(texts: Iterable[str]) -> list[str]:
    return [" ".join(text.replace("|", "\\|").split()) for text in texts]


def csv_text(comparison: Comparison) -> str:
    """One line a run: full names, full precision, empty cells for what is not known."""
    paths = list(comparison.rows[0].parameters) if comparison.rows else []
    printed = list(dict.fromkeys(entry.name for row in comparison.rows for entry in row.published))
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    ours = [f"best {comparison.metric}", *comparison.tests, "model / best possible"]
    theirs = [heading for name in printed for heading in (f"published {name}", f"published sd {name}")]
    writer.writerow(["run", "state", *paths, *ours, *theirs, "epochs", "steps", "seconds", "message"])
    for row in comparison.rows:
        scores = [row.scores.get(key) for key in ("best", *comparison.tests)]
        known = {entry.name: entry.score for entry in row.published}
        pairs = [(known[name].value, known[name].sd) if name in known else (None, None) for name in printed]
        settings = [json.dumps(v) if isinstance(v, (list, dict)) else v for v in row.parameters.values()]
        measured = [*(score.value if score else None for score in scores), _or_empty(row.ratio)]
        numbers = [number for pair in pairs for number in pair]
        effort = [row.epochs, row.steps, _or_empty(row.seconds)]
        writer.writerow([row.name, row.state, *settings, *measured, *numbers, *effort, row.reason])
    return file.getvalue()


def _or_empty(number: float) -> float | None:
    return number if math.isfinite(number) else None


def write_text(path: Path, text: str) -> None:
    """Write a text file whole or not at all."""
    partial = path.with_name(path.name + ".partial")
    partial.write_text(text, encoding="utf-8")
    partial.replace(path)
