"""Seconds and memory of the Bayesian Tiramisu at 256 x 256, beside plain concatenation; its draws in batches.

The plain network is the same one, with the same weights, its dense blocks written as the authors' Keras code has them:
every layer reads the concatenation of all maps before it. It is measured in torch's default memory format and with
channels last, as our network is. All take turns in one process, in rounds; medians. Memory is that of a process of its
own: the peak of its resident memory less what it holds before the first pass; on a CUDA device that of torch's
allocator. Equal outputs are checked without dropout: in the mode of training in double precision, in that of
evaluation in single precision too; in training's the batch statistics of few values amplify single precision's rounding
of both networks alike.
"""

from __future__ import annotations

import copy
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from types import MethodType
from typing import Any

import torch

from tests.benchmarks._memory import peak_mib, resident_mib

ROUNDS = 3
SIDE_PX = 256
DRAWS = 4
TOLERANCE = 1e-5
"""Of mu and sigma, relative to the largest value."""


def run() -> list[dict[str, object]]:
    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.manual_seed(0)
    lean = _network(device)
    plain = _with_concatenations(copy.deepcopy(lean))
    image = 8 * torch.rand(1, 1, SIDE_PX, SIDE_PX, device=device)
    difference = _difference(copy.deepcopy(lean).double(), copy.deepcopy(plain).double(), image.double())
    rounding = _difference(copy.deepcopy(lean), copy.deepcopy(plain), image)
    evaluated = _difference(copy.deepcopy(lean), copy.deepcopy(plain), image, training=False)
    if not max(difference, evaluated) < TOLERANCE:
        raise AssertionError(f"outputs differ by {difference:.1e} and {evaluated:.1e} of the largest value")
    rows: list[dict[str, object]] = []
    for name, work in (("forward", _forward), ("training step", _training_step)):
        networks = {"lean": lean, "plain": _in_default_format(plain), "plain, channels last": plain}
        methods = {kind: _bound(work, network, image) for kind, network in networks.items()}
        times = _times(methods, device)
        peaks = {kind: _peak_mib(kind, name, device) for kind in methods}
        for kind in methods:
            row: dict[str, object] = {"what": f"{name}, {kind}", "device": device, "batch": 1}
            row |= {"s": statistics.median(times[kind]), "peak MiB": peaks[kind]}
            if kind == "lean":
                row |= {"difference, float64": f"{difference:.0e}", "float32": f"{rounding:.0e}"}
                row |= {"float32, evaluation": f"{evaluated:.0e}"}
            else:
                ratios = [b / a for a, b in zip(times["lean"], times[kind], strict=True)]
                row |= {"lean is faster by": statistics.median(ratios), "lean takes": peaks["lean"] / peaks[kind]}
                row |= {"goal": "1.5x, 0.6"} if name == "training step" else {}
            rows.append(row)
    return [*rows, *_draws(lean, image, device)]


def _network(device: str) -> Any:
    from lightning_modules.networks.tiramisu import BayesianTiramisu

    return BayesianTiramisu().to(device)


def _with_concatenations(network: Any) -> Any:
    """The network with the dense blocks of the authors' models/densenet.py."""

    def forward(block: Any, *sources: torch.Tensor) -> torch.Tensor:
        maps = torch.cat(sources, dim=1)
        for layer in block.layers:
            maps = torch.cat((maps, layer(maps)), dim=1)
        return maps

    for block in (*network.down, network.bottom, *network.up):
        block.forward = MethodType(forward, block)
    return network


def _in_default_format(network: Any) -> Any:
    return copy.deepcopy(network).to(memory_format=torch.contiguous_format)


def _difference(lean: Any, plain: Any, image: torch.Tensor, *, training: bool = True) -> float:
    for network in (lean, plain):
        for layer in network.train(training).modules():
            if isinstance(layer, torch.nn.Dropout):
                layer.p = 0.0
    with torch.no_grad():
        ours, theirs = lean(image), plain(image)
    return float((ours - theirs).abs().max() / theirs.abs().max())


def _bound(work: Callable[[Any, torch.Tensor], None], network: Any, image: torch.Tensor) -> Callable[[], None]:
    return lambda: work(network, image)


def _forward(network: Any, image: torch.Tensor) -> None:
    with torch.no_grad():
        network.eval()(image)


def _training_step(network: Any, image: torch.Tensor) -> None:
    mu, sigma = network.train()(image).unbind(dim=1)
    ((1 - mu).square() / sigma.square() + sigma.square().log()).mean().backward()
    network.zero_grad()


def _times(methods: dict[str, Callable[[], None]], device: str) -> dict[str, list[float]]:
    """Seconds per call of every method, round by round."""
    times: dict[str, list[float]] = {name: [] for name in methods}
    for turn in range(ROUNDS + 1):
        for name, method in methods.items():
            began = time.perf_counter()
            method()
            if device == "cuda":
                torch.cuda.synchronize()
            if turn:
                times[name].append(time.perf_counter() - began)
    return times


def _peak_mib(kind: str, name: str, device: str) -> float:
    """Memory that one pass needs beyond the network and its gradients, in a fresh process."""
    code = f"from tests.benchmarks.tiramisu import measure_peak; print(measure_peak({kind!r}, {name!r}, {device!r}))"
    return float(subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout)


def measure_peak(kind: str, name: str, device: str) -> float:
    """Memory in MiB of one pass of the `kind` of network, in this process."""
    network = _network(device)
    if kind != "lean":
        network = _with_concatenations(network)
    if kind == "plain":
        network = _in_default_format(network)
    work = _forward if name == "forward" else _training_step
    work(network, torch.rand(1, 1, 128, 128, device=device))  # libraries and gradients are there from now on
    image = torch.rand(1, 1, SIDE_PX, SIDE_PX, device=device)
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        work(network, image)
        return (torch.cuda.max_memory_allocated() - before) / 2**20
    before = resident_mib()
    work(network, image)
    return peak_mib() - before


def _draws(network: Any, image: torch.Tensor, device: str) -> list[dict[str, object]]:
    """Seconds per draw when several go through the network together, each with its own random stream."""

    def sample(together: int) -> Callable[[], None]:
        def work() -> None:
            with torch.no_grad():
                for first in range(0, DRAWS, together):
                    generators = [torch.Generator(device).manual_seed(first + i) for i in range(together)]
                    with network.sampling(generators):
                        network(image.repeat(together, 1, 1, 1))

        return work

    times = _times({str(together): sample(together) for together in (1, 2, 4)}, device)
    return [
        {"what": f"{DRAWS} draws, {together} at once", "device": device, "batch": int(together), "s": seconds}
        for together, seconds in ((name, statistics.median(values) / DRAWS) for name, values in times.items())
    ]
