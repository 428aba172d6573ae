"""Displacement and force from pairs of bead volumes: seconds and errors of correlation and networks in one process.

All take turns on the same simulated pairs, batch 1, on all cores (and on a CUDA GPU where there is one); the smallest
of the rounds is printed. Correlation is timed with more and more passes, until its error stops falling. The networks
are untrained unless VOLUMES_RUN names a run of cfm_3d_small: their time is the same, their errors are then meaningless
and left out (but for the siamese network, which untrained is a least-squares registration). `seconds` holds the
displacement and the physics layer.
"""

from __future__ import annotations

import os
import time
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from lightning_modules.metrics.force import median_error_vx, relative_l2

ROUNDS = 3
PAIRS = 4
PASSES = (1, 2, 3, 4, 6, 8)
SIZES = ((64, 64, 64), (96, 128, 128))


class Pair(NamedTuple):
    """A simulated pair with its truth."""

    volumes: Tensor
    displacement_voxels: Tensor
    body_force_n_per_m3: Tensor
    gel: dict[str, Any]


def run() -> list[dict[str, object]]:
    devices = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
    return [row for size in SIZES for device in devices for row in _measured(size, device)]


def _measured(size: tuple[int, int, int], device: str) -> list[dict[str, object]]:
    from lightning_modules.networks.volume_correlation import VolumeCorrelation
    from lightning_modules.networks.volumetric_force_net import VolumetricForceNet
    from mechanolab.config import compose

    pairs = [_pair(size, number, device) for number in range(PAIRS if size == SIZES[0] else 1)]
    numbers = compose("cfm_3d_dvc")["module"]
    options = {name: numbers[name] for name in ("overlap", "outlier_threshold")}
    methods: dict[str, tuple[Any, bool]] = {
        f"correlation, {passes} passes": (
            VolumeCorrelation(numbers["window_voxels"], passes=passes, **options),
            True,
        )
        for passes in PASSES
    }
    trained = os.environ.get("VOLUMES_RUN")
    methods["siamese network, " + (f"run {trained}" if trained else "untrained")] = (_siamese(trained), True)
    methods["stacked U-Net, untrained"] = (VolumetricForceNet(), False)
    return [
        _row(name, method.to(device).eval(), pairs, size, device, judged) for name, (method, judged) in methods.items()
    ]


def _siamese(run_id: str | None) -> torch.nn.Module:
    from lightning_modules.networks.siamese_force_net import SiameseForceNet
    from mechanolab.config import compose

    network = SiameseForceNet(compose("cfm_3d_small")["module"]["width"])
    if run_id is not None:
        from mechanolab import runs

        file = runs.run_folder("cfm_3d_small", run_id) / "checkpoints" / "best.ckpt"
        weights = torch.load(file, map_location="cpu", weights_only=True)["state_dict"]
        network.load_state_dict(
            {name.removeprefix("network."): value for name, value in weights.items() if name.startswith("network.")}
        )
    return network


@torch.inference_mode()
def _row(
    name: str, method: torch.nn.Module, pairs: list[Pair], size: tuple[int, int, int], device: str, judged: bool
) -> dict[str, object]:
    from lightning_modules.networks.far_displacements import reaching_far
    from lightning_modules.networks.physics_layer import PhysicsLayer, um_from_voxels
    from lightning_modules.networks.volume_correlation import VolumeCorrelation

    answer = method if isinstance(method, VolumeCorrelation) else partial(reaching_far, method)
    physics = PhysicsLayer()
    seconds, errors = [], []
    for number in range(ROUNDS):
        for pair in pairs:
            _wait(device)
            began = time.perf_counter()
            displacement = answer(pair.volumes)
            mechanics = physics(um_from_voxels(displacement, pair.gel["voxel_size_um"]), **pair.gel)
            _wait(device)
            seconds.append(time.perf_counter() - began)
            if number == 0:
                force = relative_l2(mechanics.body_force_n_per_m3, pair.body_force_n_per_m3)
                errors.append((median_error_vx(displacement, pair.displacement_voxels).item(), force.item()))
    row: dict[str, object] = {"method": name, "volume": " x ".join(map(str, size)), "device": device}
    row["seconds"] = min(seconds)
    if judged:
        error, force_error = torch.tensor(errors).mean(dim=0).tolist()
        row |= {"median |u - u0| (voxels)": error, "body force, relative L2": force_error}
    return row


def _wait(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def _pair(size: tuple[int, int, int], number: int, device: str) -> Pair:
    from datamodules.simulators.cfm_3d import Parameters, simulate_group

    depth, height, width = size
    parameters = Parameters(size_z=depth, size_y=height, size_x=width)
    fields = simulate_group(0, number, 1, parameters)[0].fields
    volumes = torch.stack([torch.from_numpy(fields[name][0].astype("float32")) for name in ("reference", "deformed")])
    low = volumes.flatten(1).kthvalue(volumes[0].numel() // 10, dim=1).values[:, None, None, None]
    high = volumes.flatten(1).kthvalue(int(0.999 * volumes[0].numel()), dim=1).values[:, None, None, None]
    voxel = torch.from_numpy(fields["voxel_size_um"]).float()
    gel = {
        "voxel_size_um": voxel[None].to(device),
        "youngs_modulus_pa": torch.tensor([float(fields["youngs_modulus_pa"])], device=device),
        "poisson_ratio": torch.tensor([float(fields["poisson_ratio"])], device=device),
    }
    truth = torch.from_numpy(fields["displacement_um"]).float() / voxel.flip(0)[:, None, None, None]
    force = torch.from_numpy(fields["body_force_n_per_m3"]).float()
    scaled = ((volumes - low) / (high - low)).clamp(0, 1)
    return Pair(scaled[None].to(device), truth[None].to(device), force[None].to(device), gel)
