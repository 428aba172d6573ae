"""`make bench [BENCH=name]`: run the benchmarks and write their tables to tests/benchmarks/results/.

Each benchmark is a module beside this file with `run() -> list[dict]`, one dict per row of its table.
"""

from __future__ import annotations

import importlib
import json
import os
import platform
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent


def main(names: list[str]) -> int:
    known = sorted(p.stem for p in HERE.glob("*.py") if not p.stem.startswith("_"))
    for name in names:
        if name not in known:
            print(f"no benchmark is named '{name}'; there are: {', '.join(known)}", file=sys.stderr)
            return 2
    for name in names or known:
        rows = importlib.import_module(f"tests.benchmarks.{name}").run()
        text = table(rows)
        machine = f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}"
        print(f"\n{name} ({machine})\n{text}")
        result = {"benchmark": name, "machine": machine, "command": f"make bench BENCH={name}", "rows": rows}
        (HERE / "results").mkdir(exist_ok=True)
        (HERE / "results" / f"{name}.json").write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
        (HERE / "results" / f"{name}.md").write_text(
            f"# {name}\n\n`make bench BENCH={name}` on {machine}\n\n{text}\n", encoding="utf-8"
        )
    return 0


def table(rows: list[dict[str, object]]) -> str:
    columns = list(dict.fromkeys(key for row in rows for key in row))
    cells = [
        [f"{row.get(c, ''):.3g}" if isinstance(row.get(c), float) else str(row.get(c, "")) for c in columns]
        for row in rows
    ]
    lines = [columns, ["---"] * len(columns), *cells]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


sys.exit(main(sys.argv[1:]))
