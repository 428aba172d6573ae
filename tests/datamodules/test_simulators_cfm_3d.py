"""The cfm_3d simulator: pure in its seed; images, displacement and force belong together."""

from __future__ import annotations

import itertools
import pickle
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from datamodules.batches import Sample
from datamodules.shards.reader import ShardDataset
from datamodules.simulators import cfm_3d
from datamodules.simulators.cfm_3d import Parameters, group_sizes, irreducible_error, simulate_group
from mechanolab import data
from physics import solid

SMALL = Parameters(size_z=32, size_y=36, size_x=40, peak_high_voxels=1.5, cell_radius_low_um=6.0)
SCALARS = ("youngs_modulus_pa", "poisson_ratio", "peak_displacement_voxels", "force_spread_um")
FINITE_DIFFERENCES = 0.12  # relative L2 between the density and second differences of u; 0.15 at a force for eps = 4


@pytest.fixture(scope="module")
def samples() -> list[Sample]:
    """Reference volumes of a few cells."""
    return [simulate_group(0, group, 1, Parameters())[0] for group in range(3)]


def lengths(field: np.ndarray) -> np.ndarray:
    return np.linalg.norm(field.astype(np.float64), axis=0)


@pytest.mark.parametrize("geometry", ["infinite", "half_space"])
def test_a_sample_has_the_documented_fields(geometry: str) -> None:
    (sample,) = simulate_group(0, 0, 1, replace(SMALL, geometry=geometry))
    shape = (32, 36, 40)
    expected = {
        "reference": ((1, *shape), np.uint16),
        "deformed": ((1, *shape), np.uint16),
        "displacement_um": ((3, *shape), np.float32),
        "body_force_n_per_m3": ((3, *shape), np.float32),
        "cell_mask": ((1, *shape), np.uint8),
        "drift_um": ((3, 32), np.float32),
        "surface_traction_pa": ((3, 36, 40), np.float32),
        "voxel_size_um": ((3,), np.float64),
        **dict.fromkeys(SCALARS, ((), np.float64)),
    }
    assert {name: (value.shape, value.dtype) for name, value in sample.fields.items()} == expected
    assert set(cfm_3d.FIELDS) == set(expected)
    on_surface = geometry == "half_space"
    assert all(np.isfinite(value).all() for value in sample.fields.values())  # data sets hold nothing else
    assert sample.fields["body_force_n_per_m3"].any() != on_surface
    assert sample.fields["surface_traction_pa"].any() == on_surface
    assert sample.fields["cell_mask"].any()
    assert not (on_surface and sample.fields["cell_mask"][0, 1:].any())


def test_a_group_depends_on_its_arguments_alone() -> None:
    first = simulate_group(3, 5, 2, SMALL)
    again = simulate_group(3, 5, 2, pickle.loads(pickle.dumps(SMALL)))
    (shorter,), (other,) = simulate_group(3, 5, 1, SMALL), simulate_group(4, 5, 1, SMALL)
    for one, two in zip([*first, first[0]], [*again, shorter], strict=True):
        assert one[:2] == two[:2]
        for name in cfm_3d.FIELDS:
            np.testing.assert_array_equal(one.fields[name], two.fields[name])
    assert (first[0].fields["displacement_um"] != other.fields["displacement_um"]).any()
    assert (first[0].fields["reference"] != first[1].fields["reference"]).any()
    assert first[0].fields["poisson_ratio"] == first[1].fields["poisson_ratio"]
    assert {sample.sample_id for sample in first} == {"cell00005_000", "cell00005_001"}
    assert {sample.group for sample in first} == {"cell00005"}


@pytest.mark.slow
def test_displacements_keep_their_peak_and_their_gradients_stay_small(samples: list[Sample]) -> None:
    for sample in [*samples, simulate_group(0, 7, 1, Parameters(peak_low_voxels=4.0))[0]]:
        u, edges = sample.fields["displacement_um"], sample.fields["voxel_size_um"]
        peak = lengths(u / edges[::-1, None, None, None]).max()
        assert peak == pytest.approx(float(sample.fields["peak_displacement_voxels"]), rel=1e-5)
        assert 0.5 <= peak <= 4 + 1e-5
        gradient = solid.displacement_gradient(torch.from_numpy(u), edges.tolist())
        assert float(gradient.square().sum(dim=(0, 1)).max().sqrt()) < 0.2


@pytest.mark.slow
def test_the_force_is_the_one_that_the_displacement_tells(samples: list[Sample]) -> None:
    for sample in samples:
        fields = sample.fields
        edges = fields["voxel_size_um"].tolist()
        strain = solid.strain(torch.from_numpy(fields["displacement_um"].astype(np.float64)), edges)
        stress = solid.stress(strain, float(fields["youngs_modulus_pa"]), float(fields["poisson_ratio"]))
        found = solid.body_force_n_per_m3(stress, edges).numpy()
        truth = fields["body_force_n_per_m3"]
        assert np.linalg.norm(found - truth) < FINITE_DIFFERENCES * np.linalg.norm(truth)
        outside = fields["cell_mask"][0] == 0
        assert lengths(truth)[outside].max() <= 0.01 * lengths(truth).max()


@pytest.mark.slow
def test_a_cell_that_lies_within_the_volume_pulls_itself_together() -> None:
    parameters = Parameters(peak_low_voxels=0.5, peak_high_voxels=0.6, spread_high_voxels=5.0, cell_radius_high_um=11.0)
    for group in range(3):
        (sample,) = simulate_group(1, group, 1, parameters)
        force = sample.fields["body_force_n_per_m3"].astype(np.float64)
        net = np.linalg.norm(force.sum(axis=(1, 2, 3)))
        assert net < 0.03 * lengths(force).sum()  # what is left is the tails that the faces cut off


@pytest.mark.slow
def test_every_bead_moves_by_the_label_where_it_was() -> None:
    bright = replace(SMALL, photons=2e4, read_noise_photons=0.0, density=5e-4, peak_low_voxels=1.4, voxel_z_um=1.1)
    bright = replace(bright, bead_distance_voxels=9.0)
    offsets = np.array(list(itertools.product((-2, -1, 0, 1, 2), repeat=3)))  # (n, 3), z, y, x
    found = 0
    for group in range(9):
        fields = simulate_group(2, group, 1, bright)[0].fields
        volumes = [fields[name][0].astype(np.float64) - 120 for name in ("reference", "deformed")]
        u = (fields["displacement_um"] / fields["voxel_size_um"][::-1, None, None, None])[::-1]  # z, y, x
        brightest = np.unravel_index(volumes[0].argmax(), volumes[0].shape)
        if not all(4 <= k < size - 4 for k, size in zip(brightest, volumes[0].shape, strict=True)):
            continue
        centres = []
        for volume, start in ((volumes[0], brightest), (volumes[1], brightest + np.rint(u[(slice(None), *brightest)]))):
            place = np.array(start, int)
            light = np.array([volume[tuple(place + offset)] for offset in offsets])
            # the logarithm of a Gaussian is a parabola
            design = np.hstack([np.ones((len(offsets), 1)), offsets, offsets**2])
            fit = np.linalg.lstsq(design * light[:, None], light * np.log(np.maximum(light, 1)), rcond=None)[0]
            centres.append(place - fit[1:4] / (2 * fit[4:7]))
        near = tuple(np.rint(centres[0]).astype(int))
        np.testing.assert_allclose(
            centres[1] - centres[0], u[(slice(None), *near)], atol=0.12
        )  # |grad u| / 2 and noise
        found += 1
    assert found >= 3


def test_drift_depends_on_depth_alone_and_is_part_of_the_label() -> None:
    still = simulate_group(0, 1, 1, SMALL)[0].fields
    moving = simulate_group(0, 1, 1, replace(SMALL, drift_voxels=3.0))[0].fields
    assert not still["drift_um"].any()
    assert 0 < lengths(moving["drift_um"]).max() <= 3 * 0.8
    difference = moving["displacement_um"] - still["displacement_um"]
    expected = np.broadcast_to(moving["drift_um"][:, :, None, None], difference.shape)
    np.testing.assert_allclose(difference, expected, atol=1e-5)
    np.testing.assert_array_equal(moving["body_force_n_per_m3"], still["body_force_n_per_m3"])


@pytest.mark.slow
def test_the_oracle_gains_from_light_and_from_beads() -> None:
    said = {
        name: irreducible_error(replace(SMALL, **changes))
        for name, changes in {"dim": {"photons": 50.0}, "bright": {"photons": 2000.0}, "few": {"density": 1e-3}}.items()
    }
    values = {name: entry["value"] for name, entry in said.items()}
    assert all(entry["metric"] == "displacement_median_error_vx" for entry in said.values())
    assert 0 < values["bright"] < 0.5 * values["dim"]
    assert values["bright"] < values["few"]
    assert "relative L2" in said["dim"]["how"]
    assert "body force" not in irreducible_error(replace(SMALL, geometry="half_space"))["how"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"geometry": "sphere"}, "geometry must be 'infinite' or 'half_space', got 'sphere'"),
        ({"size_y": 8}, "size_y must be at least 16, got 8"),
        ({"density": 0.0}, "density must be positive"),
        ({"density": 5e-5}, "density must give a volume at least 20 beads"),
        ({"density": 0.2}, "density 0.2 per voxel leaves no room"),
        ({"photons": float("nan")}, "photons must be a finite number"),
        ({"forces_low": 1}, "forces_low must be at least 2"),
        ({"states": 1.5}, "states must be a whole number"),
        ({"poisson_high": 0.5}, "poisson_high must be below 0.5"),
        ({"peak_low_voxels": 5.0}, "peak_low_voxels must not be above peak_high_voxels"),
        ({"drift_voxels": -1.0}, "drift_voxels must be not negative"),
    ],
)
def test_impossible_numbers_are_refused_by_name(changes: dict, message: str) -> None:
    with pytest.raises(ValueError, match=f"^{message}"):
        Parameters(**changes)


def test_groups_hold_the_states_of_a_cell() -> None:
    assert group_sizes(1, SMALL) == [1]
    assert group_sizes(4, SMALL) == [1, 1, 1, 1]
    assert group_sizes(9, SMALL) == [2, 2, 2, 2, 1]
    with pytest.raises(ValueError, match="count must be positive"):
        group_sizes(0, SMALL)
    with pytest.raises(ValueError, match="size must be at most states"):
        simulate_group(0, 0, 3, SMALL)


@pytest.mark.slow
@pytest.mark.parametrize("geometry", ["infinite", "half_space"])
def test_the_command_writes_a_data_set_that_says_its_noise(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, geometry: str
) -> None:
    monkeypatch.setattr(cfm_3d, "irreducible_error", lambda parameters: {"metric": "m", "value": 1.0, "how": "h"})
    sizes = {"size_z": 16, "size_y": 16, "size_x": 16, "peak_high_voxels": 0.8, "geometry": geometry}
    assert data.simulate("cfm_3d", out=tmp_path / "set", count=8, workers=1, parameters=sizes) == 0
    assert data.verify(tmp_path / "set") == 0
    stored = ShardDataset(tmp_path / "set")
    said = stored.manifest.provenance["parameters"]
    assert (said["density"], said["photons"], said["read_noise_photons"]) == (0.01, 200.0, 3.0)
    assert len(stored) == 8
