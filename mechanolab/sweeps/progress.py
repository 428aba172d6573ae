"""What a local sweep shows while it runs: a live table on a terminal, one line a trial elsewhere. All on stderr."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from rich.console import Console, Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from mechanolab.runs import read_status

REFRESH_S = 1.0


def short_names(paths: Sequence[str]) -> dict[str, str]:
    """Dotted paths -> the shortest endings that still tell them apart.

    >>> short_names(["module.learning_rate", "module.seed", "data.seed"])
    {'module.learning_rate': 'learning_rate', 'module.seed': 'module.seed', 'data.seed': 'data.seed'}
    """
    names = {}
    for path in paths:
        words = path.split(".")
        for count in range(1, len(words) + 1):
            ending = ".".join(words[-count:])
            if sum(other == ending or other.endswith("." + ending) for other in paths) == 1:
                break
        names[path] = ending
    return names


def describe(values: Mapping[str, Any]) -> str:
    """A trial's values in one phrase: `configuration=circle-sigmoid-distance split=fold0`."""
    names = short_names(list(values))
    return " ".join(f"{names[path]}={_text(value)}" for path, value in values.items())


def _text(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def duration(seconds: float) -> str:
    """Seconds as people read them.

    >>> duration(42), duration(3725), duration(200000)
    ('42s', '1h02m', '2d07h')
    """
    if not math.isfinite(seconds):
        return "–"
    minutes, whole = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    days, hours = divmod(hours, 24)
    if days:
        return f"{days}d{hours:02d}h"
    return f"{hours}h{minutes:02d}m" if hours else f"{minutes}m{whole:02d}s" if minutes else f"{whole}s"


class Progress:
    """The display. Use as a context; `update` may be called as often as one likes.

    Args:
        name: the sweep's name.
        metric: its metric.
        planned: number of trials in all.
        done: number of trials done before this start.
        workers: trials at a time.
    """

    def __init__(self, name: str, *, metric: str, planned: int, done: int, workers: int) -> None:
        self._console = Console(stderr=True)
        self._live: Live | None = None
        if self._console.is_terminal:
            self._live = Live(console=self._console, auto_refresh=False, transient=True)
        self._name, self._metric, self._planned, self._done, self._workers = name, metric, planned, done, workers
        self._durations: list[float] = []
        self._best = ""
        self._rows: dict[str, tuple[str, float, Path]] = {}
        self._drawn = 0.0

    def __enter__(self) -> Progress:
        if self._live:
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live:
            self._live.stop()

    def say(self, sentence: str) -> None:
        """Print a line above the display."""
        if self._live:
            self._console.print(sentence, markup=False, highlight=False, soft_wrap=True)
        else:
            print(sentence, file=sys.stderr, flush=True)

    def count(self, done: int) -> None:
        """So many trials are done."""
        self._done = done

    def started(self, run_id: str, values: Mapping[str, Any], folder: Path) -> None:
        """A trial was started; its run folder tells how far it is."""
        self._rows[run_id] = (describe(values), time.time(), folder)
        if not self._live:
            self.say(f"[{self._done}/{self._planned}] {run_id} started: {describe(values)}")

    def ended(self, run_id: str, outcome: str, *, done: int, best: str = "") -> None:
        """A trial ended; `outcome` in words, `done` trials so far, `best` the best one in words."""
        _, began, _ = self._rows.pop(run_id)
        if done > self._done:
            self._durations.append(time.time() - began)
        self._done, self._best = done, best
        self.say(f"[{done}/{self._planned}] {run_id} {outcome} after {duration(time.time() - began)}")

    def update(self) -> None:
        """Draw the live table, at most once a second."""
        if not self._live or time.monotonic() - self._drawn < REFRESH_S:
            return
        self._drawn = time.monotonic()
        table = Table(box=None, pad_edge=False, header_style="bold", expand=False)
        for heading in ("trial", "parameters", "epoch", "step", self._metric, "time", "left"):
            table.add_column(heading, justify="left" if heading in ("trial", "parameters") else "right")
        for run_id, (values, began, folder) in self._rows.items():
            status = read_status(folder)
            if status.get("state") not in ("running", "finished") or status.get("updated", 0.0) < began:
                status = {}  # not begun, or what an earlier start left
            epoch, epochs, value = status.get("epoch"), status.get("max_epochs"), status.get("value")
            table.add_row(
                run_id,
                values,
                "–" if epoch is None else f"{epoch + 1}/{epochs}" if epochs else str(epoch + 1),
                str(status.get("step", "–")),
                "–" if value is None else f"{value:.4g}",
                duration(time.time() - began),
                duration(status.get("eta_s") or math.nan),
            )
        self._live.update(Group(table, self._overall()), refresh=True)

    def _overall(self) -> Table:
        left = math.nan
        if self._durations:
            left = sum(self._durations) / len(self._durations) * (self._planned - self._done) / self._workers
        words = f" {self._name}: {self._done} of {self._planned} trials, {duration(left)} left"
        line = Table.grid()
        line.add_row(
            ProgressBar(total=self._planned, completed=self._done, width=30),
            Text(words + (f", best {self._best}" if self._best else "")),
        )
        return line
