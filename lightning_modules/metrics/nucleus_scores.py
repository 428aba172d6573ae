"""The paper's nucleus statistics of pairs of images: counted per image, added up, and turned into shares and tails.

Vasudevan, Zheng et al., PLOS ONE 0271056 (2022), methods and fig. 3; the pieces are `nuclei` and `nuclei_by_chance`.
`count_nuclei` gives one image's numbers and the table of its nuclei, `COUNTS` adds up, `statistics` says from the sums
    matched_4um, matched_1um        share of generated nuclei that near their real one, the paper's matching, with
                                    _low and _high of Clopper-Pearson and _wilson_low and _wilson_high
    detection_rate, count_error     generated / real nuclei; |real - generated| / real
    precision, recall, f1           one to one, 4 um
    strict_f1                       one to one, 1 um
    area_share_generated, _real     share of the pixels that are nucleus; 0 is the black collapse
    chance_image_4um, _1um          mean chance to match in the two null models, a random point of the image ...
    chance_cell_4um, _1um           ... or of the cell
    log10_p_image_4um, ...          log10 of the chance of matching as many or more, in each of the four

Both images of a pair are cut at one threshold, Otsu's of the real one: a threshold of its own would find nuclei in the
noise of an all but black image. A generated image without a real one, or with a constant one, is cut at its own.

Deviations: the cell of a nucleus is the piece of the cell mask that its centre lies in, less what lies nearer to
another real nucleus (a mask need not part cells that touch); the paper outlined cells by hand. Nuclei whose centre the
mask leaves out, and those that do not fit into their cell, count as certain to be hit, which makes the tails larger.

"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import ndimage
from torch import Tensor
from torchmetrics import Metric

from lightning_modules.metrics import nuclei
from lightning_modules.metrics.nuclei_by_chance import chance_in_cell, chance_in_image

COUNTS = (
    "nuclei_real",
    "nuclei_generated",
    "matched_4um",
    "matched_1um",
    "paired_4um",
    "paired_1um",
    "area_real_px",
    "area_generated_px",
    "area_px",
    "chance_image_4um",
    "chance_image_1um",
    "chance_cell_4um",
    "chance_cell_1um",
)
"""Numbers of one image that add up; the chances are sums over its real nuclei."""
RADII_UM = {"4um": nuclei.MATCHED_UM, "1um": nuclei.STRICTLY_MATCHED_UM}


class ImageNuclei(NamedTuple):
    """What `count_nuclei` finds in one pair of images."""

    counts: dict[str, float]
    """One number per name in `COUNTS`; NaN for what needs a real image."""
    table: dict[str, NDArray[Any]]
    """One row per nucleus, generated ones first; columns as the keys say, NaN or -1 where there is none."""
    generated: NDArray[np.int64]
    """(y, x), numbers of the generated nuclei."""
    real: NDArray[np.int64] | None
    """(y, x), numbers of the real nuclei."""


def count_nuclei(
    generated: NDArray[np.float32],
    real: NDArray[np.float32] | None,
    cell_mask: NDArray[np.bool_] | None,
    *,
    pixel_size_um: float,
    minimum_area_um2: float,
    gaussian_sigma_px: float = 1.0,
    owned: NDArray[np.bool_] | None = None,
) -> ImageNuclei:
    """Segment and match the nuclei of one generated image.

    Args:
        generated: (y, x), any unit; one that is not finite shows no nucleus.
        real: (y, x), the same unit; None where it is unknown.
        cell_mask: (y, x), true inside cells, for the null model in the cell; None leaves both null models out.
        pixel_size_um: side of a pixel (um).
        minimum_area_um2: smaller components are no nuclei (um^2).
        gaussian_sigma_px: smoothing before the threshold (pixels).
        owned: (y, x), where the centre of a generated nucleus must lie to count; None for everywhere.

    Raises:
        ValueError: as `nuclei.segment` and `nuclei.match`, and for an area that is not positive.

    """
    if not 0 < minimum_area_um2 < math.inf:
        raise ValueError(f"minimum_area_um2 must be positive and finite, got {minimum_area_um2}")
    cut = {
        "gaussian_sigma_px": gaussian_sigma_px,
        "minimum_area_px": max(1, round(minimum_area_um2 / pixel_size_um**2)),
    }
    telling = real is not None and real.min() < real.max()
    threshold = nuclei.otsu_threshold(real, gaussian_sigma_px=gaussian_sigma_px) if telling else None
    generated_labels = np.zeros(generated.shape, dtype=np.int64)
    if np.isfinite(generated).all():
        generated_labels = nuclei.segment(generated, threshold=threshold, **cut)
    if owned is not None:
        centres = np.rint(nuclei.regions(generated_labels).centroid_yx_px).astype(int)
        kept = np.concatenate([[False], owned[tuple(centres.T)]])
        generated_labels = np.where(kept, kept.cumsum(), 0)[generated_labels]
    counts = dict.fromkeys(COUNTS, math.nan)
    counts |= {"area_px": float(generated.size), "area_generated_px": float((generated_labels > 0).sum())}
    if real is None:
        found = nuclei.regions(generated_labels)
        counts["nuclei_generated"] = float(len(found.area_px))
        return ImageNuclei(counts, _table({"generated": found}, None, pixel_size_um), generated_labels, None)
    real_labels = nuclei.segment(real, threshold=threshold, **cut)
    published = nuclei.match(generated_labels, real_labels, pixel_size_um=pixel_size_um)
    one_to_one = nuclei.match(generated_labels, real_labels, pixel_size_um=pixel_size_um, method="one_to_one")
    counts["nuclei_real"] = float(len(published.real.area_px))
    counts["nuclei_generated"] = float(len(published.generated.area_px))
    counts["area_real_px"] = float((real_labels > 0).sum())
    for name, radius_um in RADII_UM.items():
        counts[f"matched_{name}"] = float((published.distance_um < radius_um).sum())
        counts[f"paired_{name}"] = float((one_to_one.distance_um < radius_um).sum())
    if cell_mask is not None:
        counts |= _chances(published.real.centroid_yx_px, cell_mask, pixel_size_um)
    table = _table({"generated": published.generated, "real": published.real}, (published, one_to_one), pixel_size_um)
    return ImageNuclei(counts, table, generated_labels, real_labels)


def statistics(sums: Mapping[str, float]) -> dict[str, float]:
    """Shares, intervals and log10 tails of the module's docstring from sums over images; NaN where nothing is shared.

    Null models are left out where their sums are NaN or 0.

    >>> paper = statistics({"nuclei_real": 9659, "nuclei_generated": 8151, "matched_4um": 5785, "matched_1um": 2328})
    >>> [round(paper[name], 4) for name in ("matched_4um", "matched_4um_low", "matched_4um_high")]
    [0.7097, 0.6997, 0.7196]

    """
    known = {name: float(sums.get(name, math.nan)) for name in COUNTS}
    counted = {name: 0 if math.isnan(value) else round(value) for name, value in known.items()}
    counts = nuclei.NucleusCounts(
        *(counted[name] for name in ("nuclei_real", "nuclei_generated", "matched_4um", "matched_1um")),
        *(counted[name] for name in ("paired_4um", "paired_1um")),
    )
    rates = nuclei.rates(counts)
    found = {"matched_4um": rates["success_rate"], "matched_1um": rates["strict_success_rate"]}
    found |= {name: rates[name] for name in ("detection_rate", "count_error", "precision", "recall", "f1", "strict_f1")}
    for part in ("generated", "real"):
        found[f"area_share_{part}"] = known[f"area_{part}_px"] / known["area_px"] if counted["area_px"] else math.nan
    for name in RADII_UM:
        matched = counted[f"matched_{name}"]
        if counts.generated:
            bounds = nuclei.clopper_pearson(matched, counts.generated)
            found |= dict(zip((f"matched_{name}_low", f"matched_{name}_high"), bounds, strict=True))
            bounds = nuclei.wilson(matched, counts.generated)
            found |= dict(zip((f"matched_{name}_wilson_low", f"matched_{name}_wilson_high"), bounds, strict=True))
        for place in ("image", "cell"):
            chances = known[f"chance_{place}_{name}"]
            if counts.real and counts.generated and chances > 0:
                chance = min(1.0, chances / counts.real)
                found[f"chance_{place}_{name}"] = chance
                found[f"log10_p_{place}_{name}"] = nuclei.log10_binomial_tail(matched, counts.generated, chance)
    return found


def added(rows: Iterable[Mapping[str, Any]]) -> dict[str, float]:
    """Sums of `COUNTS` over the images (mappings with those keys) whose real nuclei are known."""
    known = [row for row in rows if not math.isnan(float(row["nuclei_real"]))]
    return {name: float(sum(float(row[name]) for row in known)) for name in COUNTS}


class NucleusSums(Metric):
    """Sums of `COUNTS` over all images of all processes; `compute` gives their `statistics`."""

    is_differentiable = False
    full_state_update = False
    sums: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.add_state("sums", torch.zeros(len(COUNTS)), dist_reduce_fx="sum")

    def update(self, counts: Mapping[str, float]) -> None:
        """Add one image's numbers."""
        values = [float(counts[name]) for name in COUNTS]
        self.sums = self.sums + torch.tensor(values, dtype=self.sums.dtype, device=self.sums.device)

    def compute(self) -> dict[str, float]:
        """`statistics` of the sums."""
        return statistics(dict(zip(COUNTS, self.sums.tolist(), strict=True)))


def _chances(
    centroids_yx_px: NDArray[np.float64], cell_mask: NDArray[np.bool_], pixel_size_um: float
) -> dict[str, float]:
    """Sums over nuclei of the chances of both null models."""
    sums = {f"chance_{place}_{name}": 0.0 for place in ("image", "cell") for name in RADII_UM}
    area_um2 = cell_mask.size * pixel_size_um**2
    y, x = np.indices(cell_mask.shape)
    if not len(centroids_yx_px):
        return sums
    nearest, least = np.zeros(cell_mask.shape, dtype=np.int64), np.full(cell_mask.shape, np.inf)
    for number, (centre_y, centre_x) in enumerate(centroids_yx_px):
        apart = (y - centre_y) ** 2 + (x - centre_x) ** 2
        nearest[apart < least] = number
        np.minimum(least, apart, out=least)
    for number, centroid in enumerate(centroids_yx_px):
        pieces = ndimage.label(cell_mask & (nearest == number), structure=np.ones((3, 3)))[0]
        own = pieces[tuple(np.rint(centroid).astype(int))]
        cell = (pieces == own) & (own > 0)
        rows, columns = np.flatnonzero(cell.any(axis=1)), np.flatnonzero(cell.any(axis=0))
        for name, radius_um in RADII_UM.items():
            sums[f"chance_image_{name}"] += chance_in_image(radius_um=radius_um, field_um=math.sqrt(area_um2))
            chance = math.nan
            if len(rows):
                box = np.s_[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
                place = (centroid[0] - rows[0], centroid[1] - columns[0])
                chance = chance_in_cell(cell[box], place, pixel_size_um=pixel_size_um, radius_um=radius_um)
            sums[f"chance_cell_{name}"] += 1.0 if math.isnan(chance) else chance
    return sums


def _table(
    regions: Mapping[str, nuclei.Regions], matches: tuple[nuclei.Match, nuclei.Match] | None, pixel_size_um: float
) -> dict[str, NDArray[Any]]:
    """Nuclei as columns: where they lie, and for generated ones whom they were given and how far away that is."""
    parts = list(regions.values())
    sizes = [len(part.area_px) for part in parts]
    centroids = np.concatenate([part.centroid_yx_px for part in parts])
    table: dict[str, NDArray[Any]] = {
        "kind": np.repeat(list(regions), sizes),
        "nucleus": np.concatenate([np.arange(size) for size in sizes]),
        "x_um": centroids[:, 1] * pixel_size_um,
        "y_um": centroids[:, 0] * pixel_size_um,
        "area_um2": np.concatenate([part.area_px for part in parts]) * pixel_size_um**2,
    }
    for prefix, match in zip(("real", "paired"), matches or (None, None), strict=True):
        rest = sum(sizes[1:])
        generated = sizes[0]
        index = match.real_index if match is not None else np.full(generated, -1)
        distance = match.distance_um if match is not None else np.full(generated, np.inf)
        distance = np.where(np.isfinite(distance), distance, np.nan)
        table[f"{prefix}_nucleus"] = np.concatenate([index, np.full(rest, -1)])
        table["distance_um" if prefix == "real" else "paired_distance_um"] = np.concatenate(
            [distance, np.full(rest, np.nan)]
        )
        if prefix == "real":
            iou = match.iou if match is not None else np.full(generated, np.nan)
            table["box_iou"] = np.concatenate([iou, np.full(rest, np.nan)])
    return table
