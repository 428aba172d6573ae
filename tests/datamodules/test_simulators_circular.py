"""The circular twin: pure in its seed, its error floor exact, and nothing but the cell tells the label."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
from scipy.stats import kstest, vonmises

from datamodules.batches import Sample
from datamodules.simulators import circular
from datamodules.simulators.circular import Parameters, group_sizes, irreducible_error, simulate_group

CELLS = 500
P_VALUE = 1e-3  # with a fixed seed a test either passes for good or shows a fault
Z_SQUARED = -np.log(P_VALUE)  # threshold of |mean|^2 / (variance / n) of a complex sample, which is exponential


@pytest.fixture(scope="module")
def cells() -> list[Sample]:
    return [simulate_group(11, group, 1, Parameters())[0] for group in range(CELLS)]


@pytest.fixture(scope="module")
def images(cells: list[Sample]) -> np.ndarray:
    return np.stack([cell.fields["image"][0] for cell in cells]).astype(np.float64)


@pytest.fixture(scope="module")
def polarity(cells: list[Sample]) -> np.ndarray:
    return np.array([cell.fields["polarity_rad"] for cell in cells], np.float64)


def harmonic(images: np.ndarray, *, order: int, inner_px: float, outer_px: float) -> np.ndarray:
    """Angular harmonic (y up) of every image over a ring about the middle, (n,) complex, relative to its mean."""
    rows, columns = np.indices(images.shape[1:]) - 0.5 * (images.shape[1] - 1)
    distance, angle = np.hypot(rows, columns), np.arctan2(-rows, columns)
    weight = np.where((distance >= inner_px) & (distance < outer_px), np.exp(-1j * order * angle), 0.0)
    return np.einsum("nij,ij->n", images, weight) / images.mean(axis=(1, 2))


def chance_squared(values: np.ndarray) -> float:
    """|mean|^2 in units of its variance under zero mean."""
    return float(np.abs(values.mean()) ** 2 / (np.mean(np.abs(values) ** 2) / len(values)))


def test_a_sample_has_the_documented_fields(cells: list[Sample]) -> None:
    for cell in cells[:20]:
        assert set(cell.fields) == set(circular.FIELDS)
        assert cell.fields["image"].shape == (1, 128, 128)
        assert cell.fields["image"].dtype == np.uint8
        for name in ("angle_rad", "polarity_rad"):
            assert cell.fields[name].shape == ()
            assert cell.fields[name].dtype == np.float32
            assert 0.0 <= float(cell.fields[name]) < 2 * np.pi


def test_a_group_depends_on_its_arguments_alone() -> None:
    parameters = Parameters()
    first, again = simulate_group(3, 7, 3, parameters), simulate_group(3, 7, 3, pickle.loads(pickle.dumps(parameters)))
    shorter, other = simulate_group(3, 7, 2, parameters), simulate_group(4, 7, 3, parameters)
    for one, two in zip(first, again, strict=True):
        assert one.sample_id == two.sample_id
        for name in circular.FIELDS:
            np.testing.assert_array_equal(one.fields[name], two.fields[name])
    for one, two in zip(first, shorter, strict=False):
        np.testing.assert_array_equal(one.fields["image"], two.fields["image"])
    assert (first[0].fields["image"] != other[0].fields["image"]).any()
    assert len({sample.sample_id for sample in first}) == 3
    assert {sample.group for sample in first} == {"cell00007"}


@pytest.mark.parametrize(
    ("count", "sizes"), [(1, [1]), (4, [1, 1, 1, 1]), (10, [3, 3, 2, 2]), (16, [4] * 4), (18, [4, 4, 4, 3, 3])]
)
def test_groups_share_the_samples_evenly(count: int, sizes: list[int]) -> None:
    assert group_sizes(count, Parameters()) == sizes


def test_any_count_from_four_on_has_four_groups() -> None:
    for count in range(4, 200):
        sizes = group_sizes(count, Parameters())
        assert sum(sizes) == count
        assert len(sizes) >= 4
        assert max(sizes) <= 4


def test_the_floor_of_the_error_is_the_mean_deviation_of_the_label_noise() -> None:
    assert irreducible_error(Parameters())["value"] == pytest.approx(11.6, abs=0.05)
    for kappa in (0.01, 2.0, 16.0, 1000.0):
        floor = irreducible_error(Parameters(label_concentration=kappa))["value"]
        reference = np.degrees(vonmises(kappa).expect(np.abs, lb=-np.pi, ub=np.pi))
        assert floor == pytest.approx(reference, rel=1e-4)
    wide = irreducible_error(Parameters(label_concentration=1e-6))["value"]
    narrow = irreducible_error(Parameters(label_concentration=1e4))["value"]
    assert wide == pytest.approx(90.0, abs=1e-3)
    assert narrow == pytest.approx(np.degrees(np.sqrt(2 / np.pi) / 100.0), rel=1e-3)


def test_labels_scatter_about_the_axis_as_von_mises(cells: list[Sample], polarity: np.ndarray) -> None:
    label = np.array([cell.fields["angle_rad"] for cell in cells], np.float64)
    noise = np.angle(np.exp(1j * (label - polarity)))
    assert kstest(noise, vonmises(16.0).cdf).pvalue > P_VALUE
    assert kstest(noise, vonmises(8.0).cdf).pvalue < P_VALUE  # the test would notice another concentration
    floor = irreducible_error(Parameters())["value"]
    assert np.degrees(np.abs(noise).mean()) == pytest.approx(floor, rel=4 * 0.76 / np.sqrt(CELLS))


@pytest.mark.slow
def test_the_noise_of_one_frame_says_nothing_about_the_next() -> None:
    pairs = [simulate_group(5, group, 2, Parameters(neighbours_mean=0.0)) for group in range(150)]
    noise = np.array([[float(f.fields["angle_rad"] - f.fields["polarity_rad"]) for f in pair] for pair in pairs])
    sine = np.sin(noise)
    correlation = np.mean(sine[:, 0] * sine[:, 1]) / np.mean(sine**2)
    assert abs(correlation) < 3.3 / np.sqrt(len(pairs))


def test_axes_are_uniform_on_the_circle(polarity: np.ndarray) -> None:
    assert kstest(polarity / (2 * np.pi), "uniform").pvalue > P_VALUE


def test_the_mean_image_has_no_direction(images: np.ndarray) -> None:
    for order in (1, 2, 4):
        assert chance_squared(harmonic(images, order=order, inner_px=2, outer_px=60)) < Z_SQUARED


def test_the_cell_itself_tells_the_axis(images: np.ndarray, polarity: np.ndarray) -> None:
    near = harmonic(images, order=1, inner_px=12, outer_px=20) * np.exp(1j * polarity)
    far = harmonic(images, order=1, inner_px=20, outer_px=32) * np.exp(1j * polarity)
    for turned, front in ((near, 1.0), (far, -1.0)):
        assert chance_squared(turned) > 4 * Z_SQUARED
        assert front * turned.real.mean() > 0  # near: lamella brighter than body; far: ruffles darker than the tail
        left_against_right = turned.imag.mean() / (turned.imag.std() / np.sqrt(CELLS))
        assert abs(left_against_right) < 3.3


def test_light_and_neighbours_say_nothing_about_the_axis(images: np.ndarray, polarity: np.ndarray) -> None:
    corners = harmonic(images, order=1, inner_px=66, outer_px=91)
    assert chance_squared(corners * np.exp(1j * polarity)) < Z_SQUARED
    background = np.median(images, axis=(1, 2))
    assert chance_squared((background - background.mean()) * np.exp(1j * polarity)) < Z_SQUARED


def test_away_from_a_lone_cell_the_picture_is_empty() -> None:
    quiet = Parameters(
        neighbours_mean=0.0, debris_mean=0.0, floating_probability=0.0, noise_grey_low=0.0, noise_grey_high=0.0,
        unevenness=0.0, background_grey_low=100.0, background_grey_high=100.0,
    )  # fmt: skip
    image = simulate_group(0, 0, 1, quiet)[0].fields["image"][0]
    border = np.concatenate([image[0], image[-1], image[:, 0], image[:, -1]]).astype(int)
    assert np.abs(border - 100).max() <= 3  # the far reach of the halo
    assert image.min() < 70
    assert image.max() > 110


@pytest.mark.slow
def test_a_cell_keeps_its_shape_and_slowly_turns() -> None:
    parameters = Parameters()
    frames = [simulate_group(9, group, 3, parameters) for group in range(120)]
    axis = np.array([[float(frame.fields["polarity_rad"]) for frame in cell] for cell in frames])
    turn = np.angle(np.exp(1j * np.diff(axis, axis=1)))
    spread = np.degrees(turn.std())
    assert spread == pytest.approx(parameters.polarity_drift_deg, rel=4 / np.sqrt(2 * turn.size))
    pictures = np.array([[frame.fields["image"][0] for frame in cell] for cell in frames], float)
    pictures -= np.median(pictures, axis=(2, 3), keepdims=True)
    step = np.abs(pictures[:, 1:] - pictures[:, :-1]).mean()
    stranger = np.abs(pictures - np.roll(pictures, 1, axis=0)).mean()
    assert step < 0.8 * stranger


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"label_concentration": 0.0}, "label_concentration must be positive"),
        ({"frames_per_cell": 0}, "frames_per_cell must be positive"),
        ({"frames_per_cell": 1.5}, "frames_per_cell must be a whole number"),
        ({"polarity_drift_deg": -1.0}, "polarity_drift_deg must be not negative"),
        ({"image_size_px": 63}, "image_size_px must be a multiple"),
        ({"shape_persistence": 1.0}, "shape_persistence must be below 1"),
        ({"rounded_share": 1.2}, "rounded_share must be at most 1"),
        ({"noise_grey_low": 9.0}, "noise_grey_low must not exceed"),
        ({"unevenness": 0.7}, "unevenness must be at most"),
        ({"contrast_sd": np.nan}, "contrast_sd"),
    ],
)
def test_impossible_parameters_are_refused_by_name(values: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Parameters(**values)


def test_impossible_requests_are_refused() -> None:
    with pytest.raises(ValueError, match="count must be positive"):
        group_sizes(0, Parameters())
    for seed, group, size in ((-1, 0, 1), (0, -1, 1), (0, 0, 0)):
        with pytest.raises(ValueError, match="must not be negative and size must be positive"):
            simulate_group(seed, group, size, Parameters())


def test_an_angle_just_below_a_full_turn_stays_below_it_in_single_precision() -> None:
    for angle in (2 * np.pi - 1e-9, -1e-9, 2 * np.pi, 0.0):
        wrapped = circular._wrapped(angle)
        assert wrapped.dtype == np.float32
        assert 0.0 <= float(wrapped) < 2 * np.pi
