"""The measured cell of ../shared/real, where no true traction is known: every method beside Fourier cytometry.

`forward_residual` and `displacement_nrmse` say how badly a traction explains the measured displacement, over the frame
and up to 10 px outside the outline; `fttc_correlation` how its vectors agree with Fourier cytometry's; `outside_share`
how much of sum |T| lies more than 10 px outside the outline, where there should be none. Networks are those of the runs
that the environment names, with and without the cutoff: `RUNS=dl_tfm_ours/<id>,dl_tfm/<id> make bench
BENCH=real_cell`.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

import torch

CELL = Path(__file__).resolve().parents[2] / ".." / "shared" / "real" / "dl_tfm" / "real_cell_MLData001_104.npz"
GEL = {"youngs_modulus_pa": 10670.0, "poisson_ratio": 0.45, "pixel_size_um": 1.925}
"""Wang & Lin, bioRxiv 2020.05.20.107128."""
METHODS: dict[str, tuple[str, list[str]]] = {
    "FTTC, lambda 6e-10": ("dl_tfm_fttc", []),
    "FTTC, lambda by evidence": ("dl_tfm_fttc", ["module.regularization=null", "module.choice=evidence"]),
    "FTTC + cutoff 98": ("dl_tfm_fttc", ["module.cutoff_percentile=98.0"]),
    "FTTC + cutoff 98 without an 8 px border": (
        "dl_tfm_fttc",
        ["module.cutoff_percentile=98.0", "module.frame_border_px=8"],
    ),
    "group-sparse solver": ("dl_tfm_sparse", []),
    "group-sparse solver + cutoff 98 without an 8 px border": (
        "dl_tfm_sparse",
        ["module.cutoff_percentile=98.0", "module.frame_border_px=8"],
    ),
}
SCORES = ("forward_residual", "displacement_nrmse", "fttc_correlation", "outside_share", "largest_traction_pa")
GOAL = "residual <= .25, correlation >= .93, share outside <= half of FTTC + cutoff's"


def run() -> list[dict[str, object]]:
    from mechanolab.config import compose, override

    if not CELL.is_file():
        return [{"method": "nothing: the measured cell is not there"}]
    rows = [_row(name, compose(experiment, overrides=words), None) for name, (experiment, words) in METHODS.items()]
    for name in filter(None, os.environ.get("RUNS", "").split(",")):
        config, weights = _trained(name)
        for label, words in ((name, []), (f"{name} + cutoff 98", METHODS["FTTC + cutoff 98"][1])):
            rows.append({**_row(label, override(config, words), weights), "goal": GOAL})
    return rows


def _trained(name: str) -> tuple[dict[str, Any], Path]:
    """Configuration and weights of `<experiment>/<run id>`."""
    from mechanolab.checkpoints import checkpoint_file
    from mechanolab.runs import read_config, run_folder

    folder = run_folder(*name.split("/", 1))  # type: ignore[call-arg]
    return read_config(folder), checkpoint_file(folder, "best")


@torch.inference_mode()
def _row(name: str, config: dict[str, Any], weights: Path | None) -> dict[str, object]:
    from lightning_modules.metrics.traction_scores import predicted
    from lightning_modules.networks.elastic_operator import ElasticOperator
    from mechanolab.checkpoints import load_weights
    from mechanolab.launch import construct

    parts = construct(config)
    if weights is not None:
        load_weights(parts.module, weights)
    with tempfile.TemporaryDirectory() as scratch:
        shutil.copy(CELL, scratch)
        Path(scratch, "conditions.json").write_text(json.dumps(GEL), encoding="utf-8")
        parts.data.predict_on(files=[Path(scratch) / CELL.name])
    (batch,) = parts.data.predict_dataloader()
    parts.module.eval()
    traction_pa = parts.module.predict_step(batch, 0).traction_pa
    exact = ElasticOperator([GEL["poisson_ratio"]], ["exact"], ["full"])
    found = predicted(batch, traction_pa, exact.displacement)._asdict()
    return {"method": name} | {score: float(found[score]) for score in SCORES}
