"""The dl_tfm simulator: pure in its seed, displacement and traction belong together, statistics of the stored cells."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest
import torch

from datamodules.batches import Sample
from datamodules.simulators import dl_tfm, traction_oracle
from datamodules.simulators.dl_tfm import Parameters, group_sizes, irreducible_error, simulate_group
from mechanolab import data
from physics.half_space import displacement_from_traction
from physics.polygons import polygon_interior

pytestmark = pytest.mark.slow

CELLS = 24
FLOAT32 = 2e-6  # relative to the largest displacement: fields are computed and stored in single precision
REAL = Path(__file__).resolve().parents[2] / ".." / "shared" / "real" / "dl_tfm"


@pytest.fixture(scope="module")
def cells() -> dict[str, list[Sample]]:
    """`CELLS` cells of either recipe, one rotation each."""
    return {
        recipe: [simulate_group(4, group, 1, Parameters(recipe=recipe))[0] for group in range(CELLS)]
        for recipe in ("direct", "down")
    }


def lengths(sample: Sample, name: str) -> np.ndarray:
    return np.hypot(*sample.fields[name].astype(np.float64))


def in_cell(sample: Sample) -> np.ndarray:
    return sample.fields["cell_mask"][0] > 0


def nonzero_share(sample: Sample) -> float:
    inside = in_cell(sample)
    return float(((lengths(sample, "traction_pa") > 0) & inside).sum() / inside.sum())


@pytest.mark.parametrize(
    "parameters",
    [Parameters(), Parameters(recipe="direct", grid_size_px=160), Parameters(family="discs", grid_size_px=256)],
    ids=["cells", "cells on 160", "discs on 256"],
)
def test_a_sample_has_the_documented_fields(parameters: Parameters) -> None:
    size = parameters.grid_size_px
    expected = {
        "displacement_um": ((2, size, size), np.float32),
        "traction_pa": ((2, size, size), np.float32),
        "cell_mask": ((1, size, size), np.uint8),
        "outline_px": ((360, 2), np.float32),
        "outline_px_length": ((), np.int32),
        "youngs_modulus_pa": ((), np.float64),
        "poisson_ratio": ((), np.float64),
        "pixel_size_um": ((), np.float64),
        "recipe": ((), np.int8),
        "centre_element": ((), np.int8),
        "reach": ((), np.int8),
    }
    assert set(dl_tfm.FIELDS) == set(expected)
    for sample in simulate_group(0, 0, 2, parameters):
        assert {name: (value.shape, value.dtype) for name, value in sample.fields.items()} == expected
        assert all(np.isfinite(value).all() for value in sample.fields.values())
        assert set(np.unique(sample.fields["cell_mask"])) == {0, 1}
        assert float(sample.fields["pixel_size_um"]) == pytest.approx(1.925 * 104 / size)
        assert not lengths(sample, "traction_pa")[0].any()
        codes = [int(sample.fields[name]) for name in ("centre_element", "reach")]
        assert codes == [int(parameters.family != "discs")] * 2


def test_the_outline_is_a_padded_list_that_encloses_the_mask(cells: dict[str, list[Sample]]) -> None:
    discs = simulate_group(1, 0, 3, Parameters(family="discs"))
    for sample in [*cells["down"], *cells["direct"], *discs]:
        length = int(sample.fields["outline_px_length"])
        outline = sample.fields["outline_px"]
        assert 3 <= length <= 360
        assert not outline[length:].any()
        difference = polygon_interior(outline[:length].T.astype(np.float64), 104, 104) != in_cell(sample)
        assert difference.sum() <= 20  # corners were rounded to float32 after the mask was made
    assert all(int(sample.fields["outline_px_length"]) < 360 for sample in discs)


def test_a_group_depends_on_its_arguments_alone() -> None:
    for parameters in (Parameters(family="mixed", recipe="mixed"), Parameters(family="discs")):
        for group in range(3):
            first = simulate_group(3, group, 3, parameters)
            again = simulate_group(3, group, 3, pickle.loads(pickle.dumps(parameters)))
            shorter, other = simulate_group(3, group, 2, parameters), simulate_group(4, group, 3, parameters)
            for one, two in zip(first, again, strict=True):
                assert one[:2] == two[:2]
                for name in dl_tfm.FIELDS:
                    np.testing.assert_array_equal(one.fields[name], two.fields[name])
            for one, two in zip(first, shorter, strict=False):
                # the Fourier transform of another number of fields may round differently
                np.testing.assert_allclose(one.fields["traction_pa"], two.fields["traction_pa"], rtol=1e-5)
            assert (first[0].fields["traction_pa"] != other[0].fields["traction_pa"]).any()
            assert len({sample.sample_id for sample in first}) == 3
            assert len({sample.group for sample in first}) == 1


@pytest.mark.parametrize("size", [104, 160])
@pytest.mark.parametrize(("centre_element", "reach"), [("published", "published"), ("exact", "full")])
def test_the_displacement_is_that_of_the_traction(size: int, centre_element: str, reach: str) -> None:
    parameters = Parameters(recipe="direct", grid_size_px=size, centre_element=centre_element, reach=reach)
    fields = simulate_group(2, 1, 1, parameters)[0].fields
    expected = displacement_from_traction(
        torch.from_numpy(fields["traction_pa"].astype(np.float64)),
        pixel_size_um=1.925 * 104 / size, youngs_modulus_pa=10670.0, poisson_ratio=0.45,
        centre_element=centre_element, reach=reach,
    ).numpy()  # fmt: skip
    np.testing.assert_allclose(fields["displacement_um"], expected, rtol=0, atol=FLOAT32 * np.abs(expected).max())


def test_cells_are_scaled_to_the_published_mean_displacement_or_to_a_traction(cells: dict[str, list[Sample]]) -> None:
    for sample in cells["down"] + cells["direct"]:
        inside = in_cell(sample)
        assert lengths(sample, "displacement_um")[inside].mean() == pytest.approx(0.4277 * 1.925, rel=1e-4)
    finer = simulate_group(0, 0, 1, Parameters(recipe="direct", grid_size_px=160))[0]
    assert lengths(finer, "displacement_um")[in_cell(finer)].mean() == pytest.approx(0.823, rel=1e-3)
    strong = simulate_group(0, 0, 1, Parameters(scale_to="max_traction", max_traction_pa=4000.0))[0]
    assert lengths(strong, "traction_pa")[in_cell(strong)].max() == pytest.approx(4000.0, rel=1e-5)


def test_cells_look_like_the_stored_ones_in_numbers(cells: dict[str, list[Sample]]) -> None:
    """The stored cell of this grid: 229 non-zero pixels of 2213; largest over mean traction 3.1, sd over mean 0.49."""
    for recipe, share, number in (("down", 0.104, 229), ("direct", 0.21, 460)):
        shares = [nonzero_share(sample) for sample in cells[recipe]]
        numbers = [(lengths(sample, "traction_pa") > 0).sum() for sample in cells[recipe]]
        assert np.median(shares) == pytest.approx(share, rel=0.25)
        assert np.median(numbers) == pytest.approx(number, rel=0.15)
        assert 1500 < np.median([in_cell(sample).sum() for sample in cells[recipe]]) < 2600
        outside = [((lengths(s, "traction_pa") > 0) & ~in_cell(s)).sum() for s in cells[recipe]]
        assert np.mean(outside) < 0.02 * np.mean(numbers)
    tractions = [lengths(sample, "traction_pa") for sample in cells["down"]]
    present = [traction[traction > 0] for traction in tractions]
    assert np.median([values.max() / values.mean() for values in present]) == pytest.approx(3.1, rel=0.2)
    assert np.median([values.std() / values.mean() for values in present]) == pytest.approx(0.49, rel=0.2)


@pytest.mark.skipif(not REAL.is_dir(), reason="real data is not there")
def test_the_stored_cell_resembles_the_simulated_ones(cells: dict[str, list[Sample]]) -> None:
    stored = np.load(REAL / "generic_MLData0018_104.npz")
    inside = polygon_interior(np.stack([stored["brdx"], stored["brdy"]]) - 1.0, 104, 104)
    displacement = np.hypot(*stored["dspl"].transpose(2, 1, 0))
    contrasts = []
    for sample in cells["down"]:
        length = lengths(sample, "displacement_um")
        contrasts.append(length.max() / length[in_cell(sample)].mean())
    assert np.median(contrasts) == pytest.approx(displacement.max() / displacement[inside].mean(), rel=0.3)
    areas = [in_cell(sample).sum() for sample in cells["down"]]
    assert min(areas) < inside.sum() < max(areas)


def test_the_samples_of_a_cell_are_its_rotations() -> None:
    group = simulate_group(0, 1, 16, Parameters())
    moments = []
    for sample in group:
        y, x = np.nonzero(in_cell(sample))
        spread = np.cov(x, -y)
        moments.append(spread[0, 0] - spread[1, 1] + 2j * spread[0, 1])  # turns with twice the angle
    # from a rotation to the next by 2 pi / 16, counter-clockwise; each is scaled to its own bounding box
    steps = np.angle(np.array(moments[1:]) / np.array(moments[:-1]))
    assert np.abs(np.mean(steps) - 2 * 2 * np.pi / 16) < 0.05
    areas = [in_cell(sample).sum() for sample in group]
    assert max(areas) < 2 * min(areas)


def test_forces_are_balanced_as_published(cells: dict[str, list[Sample]]) -> None:
    for sample in cells["direct"]:
        traction = sample.fields["traction_pa"].astype(np.float64)
        # the accepted cell has less than 0.1 along every direction; the drawn layers take single points of it
        assert (np.abs(traction.sum(axis=(1, 2))) < 0.2 * np.abs(traction).sum(axis=(1, 2))).all()


def test_discs_carry_their_own_substrate_and_lie_in_their_hull() -> None:
    for sample in simulate_group(5, 0, 4, Parameters(family="discs")):
        assert int(sample.fields["recipe"]) == 2
        assert float(sample.fields["youngs_modulus_pa"]) == 1000.0
        assert float(sample.fields["poisson_ratio"]) == 0.49
        traction = lengths(sample, "traction_pa")
        assert 0 < traction.max() <= 500.0 * 3  # discs of different size may overlap
        assert ((traction > 0) & ~in_cell(sample)).sum() == 0
        # the discrete operator with the exact centre element agrees where discs are resolved
        discrete = displacement_from_traction(
            torch.from_numpy(sample.fields["traction_pa"].astype(np.float64)),
            pixel_size_um=1.925, youngs_modulus_pa=1000.0, poisson_ratio=0.49,
        ).numpy()  # fmt: skip
        difference = np.linalg.norm(discrete - sample.fields["displacement_um"])
        assert difference < 0.1 * np.linalg.norm(discrete)


def test_mixed_families_and_recipes_draw_both() -> None:
    codes = [
        int(simulate_group(0, group, 1, Parameters(family="mixed", recipe="mixed"))[0].fields["recipe"])
        for group in range(24)
    ]
    assert set(codes) == {0, 1, 2}
    assert 5 <= codes.count(2) <= 19


@pytest.mark.parametrize(
    ("count", "sizes"), [(1, [1]), (4, [1] * 4), (64, [16] * 4), (66, [14, 13, 13, 13, 13]), (160, [16] * 10)]
)
def test_groups_share_the_samples_evenly(count: int, sizes: list[int]) -> None:
    assert group_sizes(count, Parameters()) == sizes


def test_the_oracle_error_grows_with_the_noise_and_is_that_of_a_fit() -> None:
    assert irreducible_error(Parameters(noise_px=0.0))["value"] == 0.0
    once, twice = (irreducible_error(Parameters(noise_px=noise))["value"] for noise in (0.0188, 0.0376))
    assert twice == pytest.approx(2 * once, rel=1e-6)
    assert 0.02 < once < 0.1
    discs = irreducible_error(Parameters(family="discs"))
    assert 0 < discs["value"] < once
    mixed = irreducible_error(Parameters(family="mixed"))
    assert mixed["value"] == pytest.approx((once + discs["value"]) / 2)
    assert set(mixed) == {"metric", "value", "how", "match"}
    changed = ("centre_element", "reach", "poisson_ratio", "transfer_function")
    assert mixed["match"] == {"data.noise_px": 0.0188, **{f"data.{name}": None for name in changed}}
    assert "oracle" in mixed["how"]


@pytest.mark.parametrize(("centre_element", "reach"), [("published", "published"), ("exact", "full")])
def test_the_oracle_of_cells_knows_what_each_pixel_does_alone(centre_element: str, reach: str) -> None:
    substrate = {"pixel_size_um": 1.5, "youngs_modulus_pa": 900.0, "poisson_ratio": 0.4}
    rows, columns = np.array([0, 16, 31, 7]), np.array([31, 12, 3, 16])
    directions = np.array([[1.0, 0.0, 0.6, -0.8], [0.0, 1.0, 0.8, 0.6]])
    alone = torch.zeros((4, 2, 32, 32), dtype=torch.float64)
    alone[torch.arange(4), :, rows, columns] = torch.from_numpy(directions.T)
    expected = displacement_from_traction(alone, centre_element=centre_element, reach=reach, **substrate).numpy()
    got = traction_oracle.pixel_responses(
        rows, columns, directions, size_px=32, reach=reach, centre_element=centre_element, **substrate
    )
    assert got == pytest.approx(expected, rel=1e-9, abs=1e-15)


def test_the_oracle_of_discs_is_what_a_least_squares_fit_reaches() -> None:
    parameters = Parameters(family="discs", noise_px=0.5)
    rng = np.random.default_rng(0)
    errors = []
    for field in range(dl_tfm.ORACLE_CELLS):
        discs = dl_tfm._draw_discs(np.random.default_rng(field), parameters)
        responses, stresses = dl_tfm._disc_fields(discs, parameters)
        matrix, clean = responses.reshape(len(responses), -1).T, responses.sum(axis=0).ravel()
        norm = np.linalg.norm(stresses.sum(axis=0))
        solver, squares = np.linalg.pinv(matrix), []
        for _ in range(60):
            noisy = clean + rng.normal(0, 0.5 * 1.925 / np.sqrt(2), clean.shape)
            strength = solver @ noisy
            squares.append(np.sum((np.tensordot(strength - 1, stresses, 1) / norm) ** 2))
        errors.append(np.sqrt(np.mean(squares)))
    assert irreducible_error(parameters)["value"] == pytest.approx(np.mean(errors), rel=0.05)


def test_the_command_writes_a_data_set_without_a_fault(tmp_path: Path) -> None:
    folder = tmp_path / "twin"
    assert data.simulate("dl_tfm", out=folder, count=8, workers=1, parameters={"family": "mixed"}) == 0
    assert data.verify(folder, workers=1) == 0


@pytest.mark.parametrize(
    ("bad", "named"),
    [
        ({"family": "cells"}, "family"),
        ({"recipe": "up"}, "recipe"),
        ({"grid_size_px": 128}, "grid_size_px"),
        ({"grid_size_px": 160}, "recipe"),
        ({"scale_to": "max"}, "scale_to"),
        ({"reach": "far"}, "reach"),
        ({"centre_element": "mean"}, "centre_element"),
        ({"rotations": 2.5}, "rotations"),
        ({"rotations": 0}, "rotations"),
        ({"poisson_ratio": 0.6}, "poisson_ratio"),
        ({"imbalance": 2.0}, "imbalance"),
        ({"disc_share": 1.1}, "disc_share"),
        ({"membrane_spread": 0.5}, "membrane_spread"),
        ({"noise_px": -0.1}, "noise_px"),
        ({"youngs_modulus_pa": float("nan")}, "youngs_modulus_pa"),
        ({"mean_displacement_px": "0.4"}, "mean_displacement_px"),
    ],
)
def test_bad_parameters_are_named(bad: dict[str, object], named: str) -> None:
    with pytest.raises(ValueError, match=named):
        Parameters(**bad)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("seed", "group", "size", "named"), [(-1, 0, 1, "seed"), (0, 0, 0, "size"), (0, 0, 17, "size")]
)
def test_bad_requests_are_named(seed: int, group: int, size: int, named: str) -> None:
    with pytest.raises(ValueError, match=named):
        simulate_group(seed, group, size, Parameters())
    with pytest.raises(ValueError, match="count"):
        group_sizes(0, Parameters())


def test_cells_that_cannot_be_balanced_are_given_up_with_a_mend(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dl_tfm, "MOST_TRIALS", 1)
    with pytest.raises(ValueError, match="imbalance"):
        simulate_group(0, 0, 1, Parameters(imbalance=1e-9))
