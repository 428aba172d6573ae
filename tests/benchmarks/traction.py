"""Milliseconds per displacement field on one thread: Fourier cytometry beside pyTFM's, the networks beside each other.

All take turns in one process, in rounds, batch 1 unless said otherwise; the median of the rounds is printed, and for
Fourier cytometry the median of the ratios to pyTFM in the same round. pyTFM's `ffttc_traction` runs as it stands in the
installed package (`pip install --no-deps pyTFM`; its own dependencies are not needed), without its smoothing filter.
"""

from __future__ import annotations

import ast
import importlib.util
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import scipy.fft
import torch

ROUNDS = 9
SUBSTRATE: dict[str, Any] = {"pixel_size_um": 1.925, "youngs_modulus_pa": 10670.0, "poisson_ratio": 0.45}
PAIRS = 3200


def run() -> list[dict[str, object]]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        rows = [row for size in (104, 512) for row in _cytometry(size)] + _networks()
    finally:
        torch.set_num_threads(threads)
    return [*rows, _simulation()]


def _cytometry(size: int) -> list[dict[str, object]]:
    from physics.half_space import displacement_from_traction
    from physics.traction_cytometry import traction_from_displacement

    field = torch.from_numpy(np.random.default_rng(0).normal(size=(2, size, size)))
    single = field.float()
    batch = single.expand(16, -1, -1, -1).contiguous()
    methods: dict[str, Callable[[], Any]] = {
        "FTTC, float32": lambda: traction_from_displacement(single, **SUBSTRATE),
        "FTTC, float64": lambda: traction_from_displacement(field, **SUBSTRATE),
        "FTTC, float32, batch of 16": lambda: traction_from_displacement(batch, **SUBSTRATE),
        "forward model, float32": lambda: displacement_from_traction(single, **SUBSTRATE),
    }
    theirs = _pytfm()
    if theirs is not None:
        u, v = field.numpy()
        methods["pyTFM ffttc_traction"] = lambda: theirs(
            u, v, 1.925e-6, 1.925e-6, SUBSTRATE["youngs_modulus_pa"], sigma=0.45, spatial_filter=None
        )
    times = _times(methods, repeats=20 if size < 256 else 3)
    times["FTTC, float32, batch of 16"] = [value / 16 for value in times["FTTC, float32, batch of 16"]]
    rows = []
    for name, values in times.items():
        row: dict[str, object] = {"method": name, "field": f"{size} x {size}", "ms": statistics.median(values)}
        if theirs is not None and name.startswith("FTTC"):
            ratios = [b / a for a, b in zip(values, times["pyTFM ffttc_traction"], strict=True)]
            row |= {"times faster than pyTFM": statistics.median(ratios), "goal": "6x" if size < 256 else "14x"}
        rows.append(row)
    return rows


def _pytfm() -> Callable[..., Any] | None:
    """The package's function, cut out of its file: importing the package would need its whole graphical interface."""
    found = importlib.util.find_spec("pyTFM")
    if found is None or found.submodule_search_locations is None:
        return None
    source = (Path(next(iter(found.submodule_search_locations))) / "TFM_functions.py").read_text(encoding="utf-8-sig")
    tree = ast.parse(source)
    tree.body = [node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name == "ffttc_traction"]
    names: dict[str, Any] = {"np": np, "scipy": scipy}
    exec(compile(tree, "ffttc_traction", "exec"), names)
    function: Callable[..., Any] = names["ffttc_traction"]
    return function


def _networks() -> list[dict[str, object]]:
    from lightning_modules.networks.elastic_operator import ElasticOperator
    from lightning_modules.networks.kratz_unet import KratzUNet
    from lightning_modules.networks.planar_unet import PlanarUNet
    from lightning_modules.networks.traction_unet import TractionUNet3d
    from lightning_modules.networks.unrolled_traction_net import UnrolledTractionNet
    from mechanolab.config import compose
    from physics.sparse_traction import traction_from_displacement_sparse

    numbers = compose("dl_tfm_ours")["module"]
    ours = {name: numbers[name] for name in ("steps", "width", "depth")}
    known = ElasticOperator([0.45], ["published"], ["published"])
    sibling = compose("dl_tfm_unet")["module"]
    networks = {
        "TracNet, faithful": TractionUNet3d("faithful"),
        "TracNet, symmetric": TractionUNet3d("symmetric"),
        "Kratz U-Net": KratzUNet(),
        "ours": UnrolledTractionNet(**ours),
        "the sibling": PlanarUNet(width=sibling["width"], depth=sibling["depth"]),
    }
    field = torch.randn(1, 2, 104, 104)
    methods: dict[str, Callable[[], Any]] = {}
    for name, network in networks.items():
        network.eval()
        for label, dtype in (("float32", None), ("bfloat16", torch.bfloat16)):
            inputs = (field, known) if name == "ours" else (field,)
            methods[f"{name}, {label}"] = lambda network=network, inputs=inputs, dtype=dtype: _infer(
                network, inputs, dtype
            )
    methods["group-sparse solver, float32"] = lambda: traction_from_displacement_sparse(field, **SUBSTRATE)
    counts = {name: sum(p.numel() for p in network.parameters()) for name, network in networks.items()}
    goals = {"ours": "15 ms", "the sibling": "8 ms"}
    return [
        {
            "method": name,
            "field": "104 x 104",
            "ms": statistics.median(values),
            "parameters": counts.get(name.rsplit(", ", 1)[0], ""),
            "goal": goals.get(name.rsplit(", ", 1)[0], ""),
        }
        for name, values in _times(methods, repeats=3).items()
    ]


@torch.inference_mode()
def _infer(network: torch.nn.Module, inputs: tuple[Any, ...], dtype: torch.dtype | None) -> torch.Tensor:
    with torch.autocast("cpu", dtype or torch.bfloat16, enabled=dtype is not None):
        result: torch.Tensor = network(*inputs)
    return result


def _times(methods: dict[str, Callable[[], Any]], *, repeats: int) -> dict[str, list[float]]:
    """Milliseconds per call of every method, round by round."""
    for method in methods.values():
        method()
    times: dict[str, list[float]] = {name: [] for name in methods}
    for _ in range(ROUNDS):
        for name, method in methods.items():
            began = time.perf_counter()
            for _ in range(repeats):
                method()
            times[name].append((time.perf_counter() - began) / repeats * 1e3)
    return times


def _simulation() -> dict[str, object]:
    from mechanolab import data

    with tempfile.TemporaryDirectory() as scratch:
        began = time.perf_counter()
        data.simulate("dl_tfm", out=Path(scratch) / "dl_tfm" / "twin", count=PAIRS, seed=0, workers=None)
        seconds = time.perf_counter() - began
    row = {"method": f"simulating and writing {PAIRS} pairs on {os.cpu_count()} cores", "field": "104 x 104"}
    return {**row, "pairs/s": PAIRS / seconds, "goal": "200"}
