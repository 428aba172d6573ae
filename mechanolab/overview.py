"""What `mechanolab runs` and `mechanolab doctor` print: which runs there are, what is installed and will be used."""

from __future__ import annotations

import shutil
import sys

from rich.console import Console
from rich.table import Table

from mechanolab import config, loggers, runs


def list_runs(name: str | None = None) -> int:
    """Print a line per run of an experiment or sweep, or of all.

    Returns:
        0.

    Raises:
        RequestError: no run is of that name.
    """
    found = runs.find_runs(name)
    if name is not None and not found:
        known = {word for run in runs.find_runs(None) for word in (run.experiment, str(run.status.get("group")))}
        hint = config.nearest(name, known) or f" (there are runs of: {', '.join(sorted(known)) or 'nothing yet'})"
        raise config.RequestError(f"no experiment or sweep named '{name}' has runs{hint}")
    table = Table("experiment", "run", "state", "step", "epoch", "metric", "best", "message")
    for run in found:
        status = run.status
        best = run.summary.get("best")
        table.add_row(
            run.experiment,
            run.run_id,
            run.state,
            str(status.get("step", "")),
            str(status.get("epoch", "")),
            run.metric,
            "" if best is None else f"{best:.4g}",
            str(status.get("message") or ""),
        )
    # no markup: a message may hold brackets
    Console(width=None if sys.stdout.isatty() else 200, markup=False).print(table)
    return 0


def doctor() -> int:
    """Print versions, GPUs, whether W&B is reached, and where data and runs lie.

    Returns:
        0, or 1 when a package is missing.
    """
    facts = runs.environment(None)
    import torch

    print(f"python {facts['python']} on {facts['platform']}, {facts['cpus']} cores")
    for package, version in facts["packages"].items():
        print(f"  {package:<16} {version or 'MISSING'}")
    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    print(f"GPUs: {', '.join(gpus) or 'none; training runs on the processor'}")
    print(f"W&B: {'a key was found; runs log online' if loggers.has_wandb_key() else 'no key; runs log offline'}")
    for name, folder in (("data", config.data_root()), ("runs", config.runs_root())):
        if isinstance(folder, str):
            print(f"{name}: {folder}")
            continue
        present = folder if folder.exists() else config.checkout()
        print(f"{name}: {folder} ({shutil.disk_usage(present).free / 1e9:.0f} GB free)")
    return 0 if all(facts["packages"].values()) else 1
