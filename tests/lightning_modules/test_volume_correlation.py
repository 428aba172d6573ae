"""Warping, splines, patches, digital volume correlation and the siamese network on displacements that are known."""

import pytest
import torch
from scipy import interpolate, ndimage

from lightning_modules.networks.force_surfaces import surface_normals
from lightning_modules.networks.siamese_force_net import SiameseForceNet, correlation_volume, least_squares, solved
from lightning_modules.networks.volume_correlation import (
    VolumeCorrelation,
    linear_weights,
    peak,
    spline_weights,
    without_outliers,
)
from lightning_modules.networks.volume_patches import in_patches, in_slabs
from lightning_modules.networks.volume_warping import blur, inside, refined, warped

SHIFT = (1.3, -0.6, 0.4)  # voxels, x y z


def beads(size=32, shift=(0.0, 0.0, 0.0), *, seed=0, density=0.012):
    """A volume of Gaussian beads, all moved by one vector."""
    generator = torch.Generator().manual_seed(seed)
    wide = size + 12
    centres = torch.rand(int(density * wide**3), 3, generator=generator) * wide - 6 + torch.tensor(shift)
    axis = torch.arange(size)
    x, y, z = (torch.exp(-0.5 * (axis - centres[:, k, None]) ** 2 / sd**2) for k, sd in enumerate((1.0, 1.0, 1.5)))
    return torch.einsum("nz,ny,nx->zyx", z, y, x).clamp(max=2) / 2


def pair(shift=SHIFT, size=32):
    return torch.stack((beads(size), beads(size, shift)))[None]


def wave(*shape):
    return torch.sin(torch.arange(torch.Size(shape).numel(), dtype=torch.float32).reshape(shape) * 0.37)


def test_warping_by_whole_voxels_moves_the_volume():
    volume = wave(1, 1, 8, 9, 10)
    displacement = torch.zeros(1, 3, 8, 9, 10)
    displacement[:, 0], displacement[:, 1], displacement[:, 2] = 2, -1, 3
    moved = warped(volume, displacement)
    torch.testing.assert_close(moved[..., :5, 1:, :8], volume[..., 3:, :-1, 2:], atol=1e-5, rtol=0)
    assert inside(displacement)[0, 0, :5, 1:, :8].min() == 1
    assert inside(displacement).sum() == 5 * 8 * 8


def test_warping_refuses_another_shape():
    with pytest.raises(ValueError, match=r"^displacement_voxels must have shape \(1, 3, 8, 8, 8\)"):
        warped(torch.zeros(1, 1, 8, 8, 8), torch.zeros(1, 3, 8, 8, 4))


@pytest.mark.parametrize("step", [1, 2, 4])
def test_refining_keeps_linear_fields(step):
    coarse = [(torch.arange(size) + 0.5) * step - 0.5 for size in (5, 6, 7)]
    fine = [torch.arange(size * step, dtype=torch.float32) for size in (5, 6, 7)]

    def field(z, y, x):
        return 0.3 * z[:, None, None] - 0.2 * y[:, None] + 0.1 * x

    torch.testing.assert_close(refined(field(*coarse)[None, None], step), field(*fine)[None, None], atol=1e-5, rtol=0)


def test_the_blur_is_scipys():
    field = wave(1, 2, 9, 10, 11)
    expected = ndimage.gaussian_filter(field.double().numpy(), 1.2, axes=(2, 3, 4), mode="constant", truncate=8)
    torch.testing.assert_close(blur(field, 1.2).double(), torch.from_numpy(expected), atol=1e-5, rtol=0)


def test_the_spline_is_scipys_natural_one():
    points, values = torch.tensor([1.5, 4.0, 7.5, 10.0]), torch.tensor([0.0, 2.0, -1.0, 0.5], dtype=torch.float64)
    found = spline_weights(points, 13) @ values
    exact = interpolate.CubicSpline(points.numpy(), values.numpy(), bc_type="natural")
    torch.testing.assert_close(found[2:11], torch.from_numpy(exact(range(2, 11))))
    torch.testing.assert_close(found[12] - found[11], torch.tensor(float(exact(10.0, 1)), dtype=torch.float64))
    line = linear_weights(points, 13) @ torch.arange(13, dtype=torch.float64)
    torch.testing.assert_close(line, points.double())


def test_the_peak_of_a_quadratic_is_found_exactly():
    z, y, x = torch.meshgrid(*(torch.arange(size, dtype=torch.float64) for size in (10, 12, 14)), indexing="ij")
    place = torch.tensor([1.3, -0.8, 0.4], dtype=torch.float64)
    dx, dy, dz = x - 7 - place[0], y - 6 - place[1], z - 5 - place[2]
    found = peak((50 - dx**2 - 2 * dy**2 - dz**2 - 0.5 * dx * dy + 0.3 * dy * dz)[None])
    torch.testing.assert_close(found[0], place, atol=1e-6, rtol=0)


def test_an_outlier_becomes_the_median_of_its_neighbours():
    field = 0.1 * wave(1, 3, 5, 5, 5)
    spoilt = field.clone()
    spoilt[0, :, 2, 2, 2] = 9.0
    mended = without_outliers(spoilt, 2.0)
    around = torch.cat(
        (spoilt[0, :, 1:4, 1:4, 1:4].flatten(1)[:, :13], spoilt[0, :, 1:4, 1:4, 1:4].flatten(1)[:, 14:]), 1
    )
    torch.testing.assert_close(mended[0, :, 2, 2, 2], around.median(dim=1).values)
    torch.testing.assert_close(without_outliers(torch.ones(1, 3, 4, 4, 4), 2.0), torch.ones(1, 3, 4, 4, 4))


def test_correlation_finds_a_shift_to_a_twentieth_of_a_voxel():
    found = VolumeCorrelation([16], overlap=0.5, passes=3, outlier_threshold=2.0)(pair())
    for component, expected in enumerate(SHIFT):
        middle = found[0, component, 8:-8, 8:-8, 8:-8]
        assert middle.median().item() == pytest.approx(expected, abs=0.05)


def test_windows_may_have_a_side_per_axis():
    """A shift of 6 voxels along z is within reach of a window of 16 there, not of one of 8."""
    volumes = pair((0.4, -0.6, 6.0))

    def median(sides):
        found = VolumeCorrelation([sides, [8, 16, 16]], overlap=0.5, passes=3, outlier_threshold=2.0)(volumes)
        return found[0, :, 8:-8, 8:-8, 8:-8].flatten(1).median(dim=1).values

    assert (median([16, 12, 20]) - torch.tensor([0.4, -0.6, 6.0])).abs().max() < 0.1
    assert (median([8, 12, 20])[2] - 6.0).abs() > 1.0


def test_further_passes_lower_the_error_and_silence_gives_no_displacement():
    def error(passes):
        found = VolumeCorrelation([16], overlap=0.5, passes=passes, outlier_threshold=2.0)(pair())
        return (found[0] - torch.tensor(SHIFT)[:, None, None, None]).square().sum(dim=0).sqrt().median()

    assert error(3) < error(1)
    assert (
        VolumeCorrelation([8], overlap=0.0, passes=2, outlier_threshold=2.0)(torch.zeros(1, 2, 16, 16, 16)).abs().max()
        == 0
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"window_voxels": [9]}, "window_voxels must be even numbers of at least 8"),
        ({"window_voxels": []}, "window_voxels must be even numbers of at least 8"),
        ({"window_voxels": [[16, 16]]}, "window_voxels must be sides or triples of sides"),
        ({"overlap": 1.0}, r"overlap must lie in \[0, 0.9\], got 1.0"),
        ({"passes": 0}, "passes must be at least 1, got 0"),
        ({"outlier_threshold": 0.0}, "outlier_threshold must be positive, got 0.0"),
    ],
)
def test_bad_numbers_of_the_correlation_are_refused(arguments, message):
    given = {"window_voxels": [16], "overlap": 0.5, "passes": 1, "outlier_threshold": None, **arguments}
    with pytest.raises(ValueError, match=f"^{message}"):
        VolumeCorrelation(given.pop("window_voxels"), **given)


# -- siamese network --------------------------------------------------------------------------------------------------


def test_the_correlation_volume_peaks_at_the_offset():
    features = torch.randn(1, 8, 8, 8, 8, generator=torch.Generator().manual_seed(0))
    volume = correlation_volume(features, features.roll((1, -2, 2), dims=(2, 3, 4)))
    assert volume[0, :, 2:-2, 2:-2, 2:-2].mean(dim=(1, 2, 3)).argmax() == (1 + 2) * 25 + (-2 + 2) * 5 + (2 + 2)


def test_least_squares_are_those_of_linear_algebra():
    generator = torch.Generator().manual_seed(1)
    rows = torch.randn(50, 3, generator=generator, dtype=torch.float64)
    true = torch.tensor([0.3, -0.2, 0.1], dtype=torch.float64)
    gram = rows.T @ rows
    products = torch.stack([gram[i, j] for i, j in ((0, 0), (1, 1), (2, 2), (0, 1), (0, 2), (1, 2))])[None]
    found = solved(products, (rows.T @ (rows @ true))[None])
    torch.testing.assert_close(found[0], true, rtol=2e-3, atol=0)


def test_the_gradient_is_in_units_of_its_mean():
    equations = least_squares(wave(2, 1, 8, 8, 8))
    torch.testing.assert_close(equations.products[:, :3].sum(dim=1).mean(dim=(1, 2, 3)), torch.ones(2))


def test_untrained_the_siamese_network_registers_small_shifts():
    shift = (0.7, -0.5, 0.3)
    with torch.no_grad():
        estimates = SiameseForceNet(8, 8).estimates(pair(shift))
    errors = [
        (e[0] - torch.tensor(shift)[:, None, None, None]).square().sum(0).sqrt().median().item() for e in estimates
    ]
    assert errors[-1] < 0.1 < errors[0]


@pytest.mark.parametrize("size", [1.0, 30.0])
def test_wrong_estimates_of_the_siamese_network_do_not_feed_on_each_other(size):
    torch.manual_seed(0)
    network = SiameseForceNet(8, 8)
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=size)
    with torch.no_grad():
        largest = [float(estimate.abs().max()) for estimate in network.estimates(pair())]
    weights = refined(torch.eye(8)[:, None, :, None, None], 4)[:, 0, :, 0, 0]
    overshoot = float(weights.abs().sum(dim=0).max()) ** 3  # of a spline over its control points, at the corners
    # the search reaches 12 voxels; each correction adds at most 4 of its own and 4 of the least squares
    for found, reach in zip(largest, (12, 20, 28, 36), strict=True):
        assert found <= reach * overshoot
    assert largest[0] > 4


def test_the_siamese_network_takes_any_size():
    network = SiameseForceNet(8, 8).eval()
    with torch.no_grad():
        assert network(torch.rand(1, 2, 18, 21, 16)).shape == (1, 3, 18, 21, 16)
    with pytest.raises(ValueError, match=r"^volumes must have shape"):
        network(torch.rand(1, 1, 16, 16, 16))


# -- patches, slabs and surfaces --------------------------------------------------------------------------------------


def test_patches_of_a_local_operation_are_seamless():
    volumes = wave(1, 2, 20, 24, 37)
    whole = in_patches(lambda part: 2 * part, volumes, 16)
    torch.testing.assert_close(whole, 2 * volumes, atol=1e-5, rtol=0)


def test_patches_overlap_and_cover():
    seen = torch.zeros(1, 1, 40, 16, 16)
    index = torch.arange(seen.numel(), dtype=torch.float32).reshape(seen.shape)

    def count(part):
        seen.view(-1)[part.flatten().long()] += 1
        return part

    in_patches(count, index, 16)
    assert seen.min() >= 1
    assert seen.max() >= 2


def test_slabs_are_the_whole():
    field = wave(1, 3, 40, 6, 6)
    (found,) = in_slabs(lambda part: [blur(part, 0.6)], field, slab_voxels=8, halo_voxels=6)
    torch.testing.assert_close(found, blur(field, 0.6), atol=1e-6, rtol=0)


def test_normals_of_a_ball_point_to_its_centre():
    axis = torch.arange(17) - 8.0
    ball = (axis[:, None, None] ** 2 + axis[:, None] ** 2 + axis**2 <= 25)[None]
    normals = surface_normals("cell", ball, torch.ones(1, 3))
    assert normals[0, :, 8, 8, 14].tolist() == [-1, 0, 0]  # to the right of the ball, the cell lies to the left
    lengths = normals.square().sum(dim=1)
    assert lengths[ball].max() == 0
    assert surface_normals("top", ball, torch.ones(1, 3))[0, 2, 0].unique().tolist() == [-1]
    with pytest.raises(ValueError, match=r"^surface must be one of top, cell, got 'side'"):
        surface_normals("side", ball, torch.ones(1, 3))
