"""Where metrics go: metrics.jsonl, the local truth, and Weights & Biases beside it.

Both count in training batches seen, which two optimizers or a resumed run do not change.
"""

from __future__ import annotations

import contextlib
import json
import math
import netrc
import os
import sys
import time
from argparse import Namespace
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlparse

from lightning.pytorch.loggers import Logger, WandbLogger
from lightning.pytorch.utilities import rank_zero_only

from mechanolab.callbacks.exact_resume import Preempted

ROUTE_TIMEOUT_S = 5


class MetricsFile(Logger):
    """Appends one JSON line per logged step to metrics.jsonl: step, epoch, time, metrics.

    Args:
        path: the file; an existing one is continued.
        batches_seen: returns the number of training batches seen.
    """

    def __init__(self, path: Path, batches_seen: Callable[[], int]) -> None:
        super().__init__()
        self.path = path
        self._batches_seen = batches_seen

    @property
    def name(self) -> str:
        """The file's name."""
        return self.path.name

    @property
    def version(self) -> str:
        """The run's id."""
        return self.path.parent.name

    @rank_zero_only
    def log_hyperparams(self, params: dict[str, Any] | Namespace, *args: Any, **kwargs: Any) -> None:
        """Nothing: config.yaml holds them."""

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Append one line and flush it."""
        values = {name: float(value) for name, value in metrics.items() if name != "epoch"}
        line = {
            "step": self._batches_seen(),
            "epoch": int(metrics.get("epoch", -1)),
            "time": round(time.time(), 3),
            **{name: value if math.isfinite(value) else str(value) for name, value in values.items()},
        }
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")


def is_first_rank() -> bool:
    """Whether this process is the one that writes."""
    return int(getattr(rank_zero_only, "rank", 0)) == 0


class WandbRun(WandbLogger):
    """Lightning's W&B logger with training batches seen as its x-axis."""

    def __init__(self, run: Any, batches_seen: Callable[[], int]) -> None:
        super().__init__(experiment=run)
        self._batches_seen = batches_seen
        run.define_metric("trainer/batches")
        run.define_metric("*", step_metric="trainer/batches")

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Log against training batches seen."""
        self.experiment.log({**metrics, "trainer/batches": self._batches_seen()})

    @rank_zero_only
    def log_hyperparams(self, params: dict[str, Any] | Namespace) -> None:
        """Nothing: the full resolved config is given to wandb.init."""


def start_wandb(
    folder: Path, *, run_id: str, group: str, config: Mapping[str, Any], batches_seen: Callable[[], int]
) -> WandbRun | None:
    """Open the W&B run: online with a key, offline without one or without a route; None when it is switched off.

    WANDB_MODE=offline or disabled and WANDB_PROJECT are honoured.
    """
    if not is_first_rank():
        return None
    mode = os.environ.get("WANDB_MODE") or ""
    if not mode:
        os.environ.pop("WANDB_MODE", None)  # an empty one is refused by wandb
    if mode == "disabled":
        return None
    os.environ.setdefault("WANDB_SILENT", "true")
    import wandb

    online = mode in ("online", "shared") or (mode == "" and has_wandb_key())

    def open_run(wandb_mode: Literal["online", "offline"]) -> Any:
        settings = wandb.Settings(
            silent=True, console="off", init_timeout=ROUTE_TIMEOUT_S, login_timeout=ROUTE_TIMEOUT_S, disable_git=True
        )
        return wandb.init(
            project=os.environ.get("WANDB_PROJECT") or "mechanolab",
            dir=folder,
            id=run_id,
            name=run_id,
            group=group,
            config=dict(config),
            mode=wandb_mode,
            resume="allow" if wandb_mode == "online" else None,
            settings=settings,
        )

    if online:
        try:
            return WandbRun(open_run("online"), batches_seen)
        except (wandb.errors.Error, OSError, TimeoutError) as error:
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            print(f"W&B cannot be reached ({reason}); this run logs offline", file=sys.stderr)
            wandb.teardown()
    elif not mode:
        print(
            "no W&B key: this run logs offline (runs/.../wandb, upload with `wandb sync runs/*/*/wandb/offline-run-*`)",
            file=sys.stderr,
        )
    return WandbRun(open_run("offline"), batches_seen)


@contextlib.contextmanager
def finish_wandb(run: WandbRun | None, summary: Callable[[], Mapping[str, Any]] = dict) -> Iterator[None]:
    """Close the W&B run when the block ends: finished, failed, or preempted, which W&B's own sweeps start again.

    Args:
        run: None where W&B is switched off.
        summary: what to add to the run's summary, asked at the end.
    """
    exit_code = 1
    try:
        yield
        exit_code = 0
    except Preempted:
        if run is not None:
            run.experiment.mark_preempting()
        raise
    finally:
        if run is not None:
            run.experiment.summary.update(summary())
            run.experiment.finish(exit_code=exit_code)


def has_wandb_key() -> bool:
    """Whether W&B would find an API key: WANDB_API_KEY or an entry in the netrc file."""
    if os.environ.get("WANDB_API_KEY"):
        return True
    host = urlparse(os.environ.get("WANDB_BASE_URL") or "https://api.wandb.ai").hostname or ""
    path = Path(os.environ.get("NETRC") or "~/.netrc").expanduser()
    try:
        hosts = netrc.netrc(str(path)).hosts
    except (OSError, netrc.NetrcParseError):
        return False
    return host in hosts or any("wandb" in name for name in hosts)
