"""The tfill twin: pure in its seed, its best scores exact, and only the actin that shows a nucleus tells of it."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import ndimage
from scipy.stats import kstest, rayleigh

from datamodules.batches import Sample
from datamodules.simulators import actin_territories, stained_cells, tfill
from datamodules.simulators.stained_cells import Cell, Frame, Slide
from datamodules.simulators.tfill import Parameters, draw_cells, group_sizes, irreducible_error, simulate_group
from lightning_modules.metrics import nuclei

P_VALUE = 1e-3  # with a fixed seed a test either passes for good or shows a fault
SMALL = Parameters(tile_px=128)
SCENES = 80
EVEN = Slide(gain=1.0, nucleus_gain=1.0, background=0.03, noise_grey=3.0, light_slope=0.0, light_direction_rad=0.0)


@pytest.fixture(scope="module")
def tiles() -> list[Sample]:
    return simulate_group(3, 0, 6, SMALL)


@pytest.fixture(scope="module")
def scenes() -> list[list[Cell]]:
    return [draw_cells(11, slide, tile, Parameters())[0] for slide in range(2) for tile in range(SCENES // 2)]


def in_frame(cell: Cell, parameters: Parameters = SMALL) -> bool:
    """Whether a nucleus lies wholly within the tile, with a rim to spare."""
    reach = 1.5 * cell.nucleus.half_length_um
    return bool((cell.nucleus.centre_um > reach).all() and (cell.nucleus.centre_um < parameters.tile_um - reach).all())


def apart_um(cell: Cell) -> float:
    """How far an oracle is from the nucleus."""
    guess = cell.shown.centre_um if cell.telling else cell.middle_um
    return float(np.hypot(*(guess - cell.nucleus.centre_um)))


def test_a_sample_has_the_documented_fields(tiles):
    for tile in tiles:
        assert list(tile.fields) == list(tfill.FIELDS)
        for name in ("actin", "nucleus", "nucleus_mask", "cell_mask"):
            assert tile.fields[name].shape == (1, 128, 128)
            assert tile.fields[name].dtype == np.uint8
        assert set(np.unique(tile.fields["nucleus_mask"])) == set(np.unique(tile.fields["cell_mask"])) == {0, 1}
        assert float(tile.fields["pixel_size_um"]) == pytest.approx(159.41 / 128)
    assert {tile.group for tile in tiles} == {"slide00"}
    assert len({tile.sample_id for tile in tiles}) == len(tiles)
    assert Parameters().pixel_size_um == pytest.approx(0.4151, abs=1e-4)


def test_a_slide_depends_on_its_arguments_alone():
    first, again, longer = (simulate_group(5, 2, size, SMALL) for size in (2, 2, 3))
    for one, two, three in zip(first, again, longer, strict=False):
        for name, values in one.fields.items():
            assert np.array_equal(values, two.fields[name])
            assert np.array_equal(values, three.fields[name])
    assert (first[0].fields["actin"] != simulate_group(6, 2, 1, SMALL)[0].fields["actin"]).any()
    assert (first[0].fields["actin"] != simulate_group(5, 3, 1, SMALL)[0].fields["actin"]).any()


def test_the_same_seed_gives_the_same_cells_at_any_resolution():
    fine, coarse = (simulate_group(1, 0, 1, Parameters(tile_px=px))[0].fields for px in (384, 128))
    shrunk = fine["nucleus_mask"][0].reshape(128, 3, 128, 3).mean(axis=(1, 3)) > 0.5
    assert (shrunk != coarse["nucleus_mask"][0].astype(bool)).mean() < 0.002
    whole = fine["cell_mask"][0].reshape(128, 3, 128, 3).mean(axis=(1, 3)) > 0.3
    assert (whole & (coarse["cell_mask"][0] == 0)).mean() < 0.06  # the lines between cells are wider there


@pytest.mark.parametrize(("count", "sizes"), [(1, [1]), (4, [1] * 4), (8, [1] * 8), (20, [3] * 4 + [2] * 4)])
def test_eight_slides_share_the_tiles(count, sizes):
    assert group_sizes(count, Parameters()) == sizes


def test_a_tile_shows_ten_to_twenty_cells(scenes):
    side = Parameters().tile_um
    counts = [sum(bool(((c.nucleus.centre_um > 0) & (c.nucleus.centre_um < side)).all()) for c in s) for s in scenes]
    assert 12.5 < np.mean(counts) < 16
    assert np.mean([9 <= count <= 21 for count in counts]) > 0.95


def test_the_best_scores_are_those_of_the_truth(scenes):
    cells = [cell for scene in scenes for cell in scene]
    distance = np.array([apart_um(cell) for cell in cells])
    best = irreducible_error(Parameters())
    assert best["metric"] == "test/matched_4um"
    for limit, share in ((4.0, best["value"]), (1.0, best["others"]["test/matched_1um"])):
        assert (distance < limit).mean() == pytest.approx(share, abs=3.3 * np.sqrt(share * (1 - share) / len(cells)))
    assert np.mean([not cell.telling for cell in cells]) == pytest.approx(0.1, abs=3.3 * 0.3 / np.sqrt(len(cells)))


def test_told_nuclei_scatter_as_rayleigh_about_what_the_actin_shows(scenes):
    told = [apart_um(cell) for scene in scenes for cell in scene if cell.telling]
    assert kstest(told, rayleigh(scale=1.2).cdf).pvalue > P_VALUE
    assert kstest(told, rayleigh(scale=1.32).cdf).pvalue < P_VALUE  # the test would notice another jitter


def test_the_best_scores_follow_from_pencil_and_paper():
    sure = irreducible_error(Parameters(poor_share=0.0))
    assert sure["value"] == pytest.approx(1 - np.exp(-(4.0**2) / (2 * 1.2**2)), rel=1e-12)
    assert sure["others"]["test/matched_1um"] == pytest.approx(0.29335, abs=1e-5)
    assert sure["others"]["test/f1"] == sure["value"]
    half = irreducible_error(Parameters(poor_share=0.5, jitter_um=0.0))  # 2 of 3 if half of them are left out
    assert half["others"]["test/f1"] == pytest.approx(max(2 / 3, 0.5 + 0.5 * (4 / 7) ** 2))
    tenth = irreducible_error(Parameters())
    assert tenth["others"]["test/f1"] == pytest.approx(2 * 0.9 * sure["value"] / 1.9)
    blind = irreducible_error(Parameters(poor_share=1.0, jitter_um=0.0))
    assert (blind["value"], blind["others"]["test/matched_1um"]) == pytest.approx(((4 / 7) ** 2, (1 / 7) ** 2))
    assert blind["without_poor_cells"]["test/detection_rate"] == 0.0
    rng = np.random.default_rng(0)
    along = 7 * np.sqrt(rng.random(400_000)) + 1.2 * rng.standard_normal(400_000)
    thrown = np.hypot(along, 1.2 * rng.standard_normal(400_000))
    assert irreducible_error(Parameters(poor_share=1.0))["value"] == pytest.approx((thrown < 4).mean(), abs=0.003)


@pytest.mark.slow
def test_an_oracle_reaches_the_best_scores_through_the_metric():
    frame, counts = Frame(192, 159.41 / 192, 1.8, 0.5), []
    for tile in range(24):
        cells, _ = draw_cells(6, 0, tile, Parameters())
        oracle = [c._replace(nucleus=c.shown if c.telling else c.shown._replace(centre_um=c.middle_um)) for c in cells]
        real, guess = (
            stained_cells.nucleus_picture(drawn, EVEN, frame, np.random.default_rng(tile))[0]
            for drawn in (cells, oracle)
        )
        counts.append(nuclei.count(guess, real, pixel_size_um=frame.pixel_size_um, minimum_area_px=20))
    rates, best = nuclei.rates(nuclei.total(counts)), irreducible_error(Parameters())
    assert rates["success_rate"] == pytest.approx(best["value"], abs=0.04)
    assert rates["strict_success_rate"] == pytest.approx(best["others"]["test/matched_1um"], abs=0.07)
    assert rates["detection_rate"] == pytest.approx(1.0, abs=0.02)


@pytest.mark.slow
def test_the_actin_is_dim_where_it_shows_a_nucleus_and_only_there(scenes):
    """Brightness in the oval against the ring about it: telling cells dim, poor ones level, wherever they lie."""
    frame = Frame(128, SMALL.pixel_size_um, 1.8, 0.5)
    contrast: dict[bool, list[float]] = {True: [], False: []}
    rows, columns = (np.indices((128, 128)) + 0.5) * frame.pixel_size_um
    for number, scene in enumerate(scenes[:40]):
        picture, owner = stained_cells.actin_picture(
            scene, EVEN, frame, confluent=False, rng=np.random.default_rng(number)
        )
        for index, cell in enumerate(scene, start=1):
            if in_frame(cell):
                distance = np.hypot(rows - cell.shown.centre_um[1], columns - cell.shown.centre_um[0])
                own = ndimage.binary_erosion(owner == index, iterations=3)
                inner, outer = own & (distance < 4), own & (distance > 9) & (distance < 13)
                if inner.sum() > 20 and outer.sum() > 40:
                    contrast[cell.telling].append(picture[inner].mean() / picture[outer].mean())
    assert max(contrast[True]) < 0.7
    assert len(contrast[False]) > 20
    # a dome over the cell's middle makes it a little brighter inside, whatever the nucleus does
    assert 0.95 < np.median(contrast[False]) < 1.3


def test_poor_actin_is_the_same_whatever_its_nucleus_does():
    cells, confluent = draw_cells(2, 0, 0, SMALL)
    hidden = [cell._replace(telling=False) for cell in cells]
    moved = [
        cell._replace(shown=cell.shown._replace(centre_um=cell.shown.centre_um + 3), nucleus=cell.nucleus)
        for cell in hidden
    ]
    frame = Frame(128, SMALL.pixel_size_um, 1.8, 0.5)
    one, two = (
        stained_cells.actin_picture(drawn, EVEN, frame, confluent=confluent, rng=np.random.default_rng(0))[0]
        for drawn in (hidden, moved)
    )
    assert np.array_equal(one, two)


def test_actin_never_knows_the_jitter():
    one, two = (simulate_group(4, 0, 1, Parameters(tile_px=96, jitter_um=jitter))[0].fields for jitter in (0.0, 1.2))
    assert np.array_equal(one["actin"], two["actin"])
    assert (one["nucleus_mask"] != two["nucleus_mask"]).any()


def test_the_mask_is_where_the_picture_is_bright(tiles):
    for tile in tiles:
        picture, mask = tile.fields["nucleus"][0], tile.fields["nucleus_mask"][0].astype(bool)
        assert (
            picture[ndimage.binary_erosion(mask)].mean()
            > 5 * picture[~ndimage.binary_dilation(mask, iterations=2)].mean()
        )
        agreement = (picture > 255 / 6) == mask
        assert agreement.mean() > 0.98  # the authors' threshold finds what was drawn


def test_cells_that_touch_are_components_of_their_own():
    cells, _ = draw_cells(8, 0, 1, Parameters(confluent_share=1.0))
    outlines = [(cell.middle_um, cell.radius_um) for cell in cells]
    owner, depth = actin_territories.territories(outlines, size_px=256, pixel_size_um=159.41 / 256)
    mask = actin_territories.separated(owner)
    components, count = ndimage.label(mask, structure=np.ones((3, 3)))
    for number in range(1, count + 1):
        assert len(np.unique(owner[components == number])) == 1
    assert mask.mean() > 0.85
    assert ((depth > 0) == (owner > 0)).all()


def test_slides_are_dealt_whole_and_four_samples_are_enough_for_every_split():
    assert tfill.SPLITS["default"]["unit"] == "group"
    assert sum(tfill.SPLITS["default"][split] for split in ("train", "val", "test")) == 1
    assert group_sizes(4, Parameters(slides=2)) == [1, 1, 1, 1]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"tile_px": 8}, "tile_px must be at least 16"),
        ({"tile_px": 64.5}, "tile_px must be a whole number"),
        ({"tile_um": 0.0}, "tile_um must be positive"),
        ({"poor_share": 1.5}, "poor_share must be at most 1"),
        ({"jitter_um": -1.0}, "jitter_um must be not negative"),
        ({"sparse_low": 14.0}, "sparse_low must not exceed"),
        ({"nucleus_aspect_low": 0.5}, "nucleus_aspect_low must be at least 1"),
        ({"gain_sd": np.nan}, "gain_sd"),
    ],
)
def test_impossible_parameters_are_refused_by_name(values, message):
    with pytest.raises(ValueError, match=message):
        Parameters(**values)


def test_impossible_requests_are_refused():
    with pytest.raises(ValueError, match="count must be positive"):
        group_sizes(0, Parameters())
    for seed, group, size in ((-1, 0, 1), (0, -1, 1), (0, 0, 0)):
        with pytest.raises(ValueError, match="must not be negative and size must be positive"):
            simulate_group(seed, group, size, Parameters())
