"""Nuclei found in generated and real images: how many there are, how far apart they lie, how sure the shares are.

Vasudevan, Zheng et al., PLOS ONE 0271056 (2022), "Segmentation" and "Statistical analysis" in its methods, figs. 3 and
S3. The authors threshold the value of HSV, take the components of at least 50 pixels with MATLAB's regionprops, give
every generated nucleus the real one whose bounding box overlaps its own most (intersection over union), and call it
matched if the centroids are less than 4 um apart (the mean nuclear radius), strictly if less than 1 um. So 5785 of 8151
generated nuclei match, 71.0 %, against 9659 real ones. A real nucleus may be given to several generated ones, and to
one whose box it does not touch; `method="one_to_one"` of `match` is our second count, in which neither happens. What
chance would get is in `nuclei_by_chance`.

Deviations: the threshold, which the paper does not state, is Otsu's after a Gaussian of 1 pixel; no image is left out
(the authors took 251 of 980 out by hand).

Images and labels are (..., y, x), arrays or tensors; centroids are (y, x) in pixels. A pixel measures what the caller
says: the paper's field is 159.41 um wide in one place and 210 um in another.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from scipy import ndimage, optimize, special, stats
from skimage.filters import threshold_otsu
from skimage.measure import label
from torch import Tensor
from torchmetrics import Metric

MATCHED_UM = 4.0
STRICTLY_MATCHED_UM = 1.0
METHODS = ("largest_overlap", "one_to_one")


def hsv_value(image: Tensor) -> Tensor:
    """Value of HSV, the largest of the colours: (..., colours, y, x) -> (..., y, x)."""
    return image.amax(dim=-3)


def otsu_threshold(image: ArrayLike | Tensor, *, gaussian_sigma_px: float = 1.0) -> float:
    """Otsu's threshold of one image (y, x) after smoothing, in its unit; arguments and errors as of `segment`."""
    return float(threshold_otsu(_smoothed(image, gaussian_sigma_px)))


def segment(
    image: ArrayLike | Tensor,
    *,
    gaussian_sigma_px: float = 1.0,
    minimum_area_px: int = 50,
    connectivity: int = 2,
    threshold: float | None = None,
) -> NDArray[np.int64]:
    """Number the bright components of every image, from 1 in the order of their first pixels; 0 is background.

    Args:
        image: (..., y, x), any unit; a constant one has no component.
        gaussian_sigma_px: smoothing before the threshold (pixels), not negative.
        minimum_area_px: smaller components are left out (pixels); 50 are 34 um^2 at 210 um / 256 pixels, 19 um^2 at
            159.41 um / 256 and 8.6 um^2 at 159.41 um / 384.
        connectivity: 1, pixels touch along an edge; 2, at a corner too, as in MATLAB.
        threshold: in the image's unit, exceeded by the components after smoothing; None for `otsu_threshold` of each
            image. An all but black image has one as well; the real image's keeps its noise from being counted.

    Returns:
        (..., y, x), int64.

    Raises:
        ValueError: an image that is not finite or has fewer than two dimensions, or a setting outside its range.

    """
    smoothed = _smoothed(image, gaussian_sigma_px)
    if minimum_area_px < 0:
        raise ValueError(f"minimum_area_px must not be negative, got {minimum_area_px}")
    if connectivity not in (1, 2):
        raise ValueError(f"connectivity must be 1 or 2, got {connectivity}")
    labels = np.zeros(smoothed.shape, dtype=np.int64)
    for index in np.ndindex(smoothed.shape[:-2]):
        above = smoothed[index] > (threshold_otsu(smoothed[index]) if threshold is None else threshold)
        components = label(above, connectivity=connectivity)
        large = np.bincount(components.ravel()) >= max(minimum_area_px, 1)
        large[0] = False
        labels[index] = np.where(large, large.cumsum(), 0)[components]
    return labels


class Regions(NamedTuple):
    """The labelled regions of one image, in the order of their labels."""

    area_px: NDArray[np.int64]
    """(n,), pixels."""
    centroid_yx_px: NDArray[np.float64]
    """(n, 2), pixels; the first pixel's centre is (0, 0)."""
    box_px: NDArray[np.int64]
    """(n, 4), first row, first column, last row + 1, last column + 1."""


def regions(labels: ArrayLike | Tensor) -> Regions:
    """Area, centroid and bounding box of every label above 0 of one image (y, x); ValueError for another shape."""
    numbers = _array(labels)
    if numbers.ndim != 2:
        raise ValueError(f"labels must have shape (y, x), got {numbers.shape}")
    places = np.argwhere(numbers > 0)
    present, region = np.unique(numbers[numbers > 0], return_inverse=True)
    area = np.bincount(region, minlength=len(present))
    sums = [np.bincount(region, weights=places[:, axis], minlength=len(present)) for axis in (0, 1)]
    first = np.full((len(present), 2), np.iinfo(np.int64).max)
    last = np.zeros((len(present), 2), dtype=np.int64)
    np.minimum.at(first, region, places)
    np.maximum.at(last, region, places + 1)
    return Regions(area, np.stack(sums, axis=1) / area[:, None], np.concatenate((first, last), axis=1))


class Match(NamedTuple):
    """Whom each of g generated nuclei was given, of r real ones."""

    generated: Regions
    real: Regions
    real_index: NDArray[np.int64]
    """(g,), place among the real ones; -1 for none."""
    iou: NDArray[np.float64]
    """(g,), intersection over union of the two bounding boxes; 0 for none."""
    distance_um: NDArray[np.float64]
    """(g,), between the two centroids; infinite for none."""


def match(
    generated_labels: ArrayLike | Tensor,
    real_labels: ArrayLike | Tensor,
    *,
    pixel_size_um: float,
    method: Literal["largest_overlap", "one_to_one"] = "largest_overlap",
) -> Match:
    """Give every generated nucleus of one image a real one by the overlap of their bounding boxes.

    Args:
        generated_labels: (y, x), whole numbers, 0 for background.
        real_labels: (y, x), likewise.
        pixel_size_um: side of a pixel (um).
        method: "largest_overlap", the paper's: the real nucleus of largest overlap, even if that is 0, the first of
            equals; the same one may be given twice. "one_to_one": each real nucleus at most once, and only where the
            boxes overlap, so that the overlaps' sum is largest (Hungarian method).

    Raises:
        ValueError: labels of different or wrong shape, a pixel size that is not positive, or an unknown method.

    """
    if method not in METHODS:
        raise ValueError(f"method must be one of {', '.join(METHODS)}, got {method!r}")
    if not 0 < pixel_size_um < math.inf:
        raise ValueError(f"pixel_size_um must be positive and finite, got {pixel_size_um}")
    if _array(generated_labels).shape != _array(real_labels).shape:
        shapes = _array(generated_labels).shape, _array(real_labels).shape
        raise ValueError(f"generated_labels and real_labels must have one shape, got {shapes[0]} and {shapes[1]}")
    generated, real = regions(generated_labels), regions(real_labels)
    overlap = _box_iou(generated.box_px, real.box_px)
    chosen = np.full(len(generated.area_px), -1)
    if method == "one_to_one":
        rows, columns = optimize.linear_sum_assignment(overlap, maximize=True)
        touching = overlap[rows, columns] > 0
        chosen[rows[touching]] = columns[touching]
    elif len(real.area_px):
        chosen = overlap.argmax(axis=1)
    given = np.flatnonzero(chosen >= 0)
    iou, distance_um = np.zeros(len(chosen)), np.full(len(chosen), np.inf)
    iou[given] = overlap[given, chosen[given]]
    apart_px = generated.centroid_yx_px[given] - real.centroid_yx_px[chosen[given]]
    distance_um[given] = np.hypot(*apart_px.T) * pixel_size_um
    return Match(generated, real, chosen, iou, distance_um)


class NucleusCounts(NamedTuple):
    """Nuclei of some images; those of several add up in `total`."""

    real: int
    generated: int
    matched: int
    """Generated ones less than 4 um from the real one that the paper's method gives them."""
    strictly_matched: int
    """Less than 1 um."""
    paired: int
    """As `matched`, one to one."""
    strictly_paired: int


def count(
    generated_image: ArrayLike | Tensor,
    real_image: ArrayLike | Tensor,
    *,
    pixel_size_um: float,
    matched_um: float = MATCHED_UM,
    strictly_matched_um: float = STRICTLY_MATCHED_UM,
    gaussian_sigma_px: float = 1.0,
    minimum_area_px: int = 50,
    threshold: float | None = None,
) -> NucleusCounts:
    """Segment one pair of images (y, x) alike and count; arguments as of `segment` and `match`, distances in um."""
    generated, real = (
        segment(image, gaussian_sigma_px=gaussian_sigma_px, minimum_area_px=minimum_area_px, threshold=threshold)
        for image in (generated_image, real_image)
    )
    as_published = match(generated, real, pixel_size_um=pixel_size_um)
    one_to_one = match(generated, real, pixel_size_um=pixel_size_um, method="one_to_one")
    near = [
        int((pairs.distance_um < limit_um).sum())
        for pairs in (as_published, one_to_one)
        for limit_um in (matched_um, strictly_matched_um)
    ]
    return NucleusCounts(len(as_published.real.area_px), len(as_published.generated.area_px), *near)


def total(counts: Iterable[NucleusCounts]) -> NucleusCounts:
    """Sum over images."""
    return NucleusCounts(*np.sum([NucleusCounts(0, 0, 0, 0, 0, 0), *counts], axis=0).tolist())


def rates(counts: NucleusCounts) -> dict[str, float]:
    """The paper's shares, and precision, recall and F1 of the one-to-one matching; NaN where nothing can be shared.

    >>> paper = rates(NucleusCounts(9659, 8151, 5785, 2328, 5785, 2328))
    >>> {name: round(rate, 3) for name, rate in paper.items() if name in ("detection_rate", "success_rate", "recall")}
    {'detection_rate': 0.844, 'success_rate': 0.71, 'recall': 0.599}

    """
    both = counts.real + counts.generated
    return {
        "detection_rate": _share(counts.generated, counts.real),
        "count_error": _share(abs(counts.real - counts.generated), counts.real),
        "success_rate": _share(counts.matched, counts.generated),
        "strict_success_rate": _share(counts.strictly_matched, counts.generated),
        "precision": _share(counts.paired, counts.generated),
        "recall": _share(counts.paired, counts.real),
        "f1": _share(2 * counts.paired, both),
        "strict_f1": _share(2 * counts.strictly_paired, both),
    }


class Share(Metric):
    """Sum of counts over the sum of what they are out of, over all that was seen, in every process."""

    is_differentiable = False
    full_state_update = False
    part: Tensor
    whole: Tensor

    def __init__(self, **kwargs: object) -> None:
        super().__init__(**kwargs)
        self.add_state("part", default=torch.tensor(0), dist_reduce_fx="sum")
        self.add_state("whole", default=torch.tensor(0), dist_reduce_fx="sum")

    def update(self, part: int, whole: int) -> None:
        """Add two counts."""
        self.part = self.part + part
        self.whole = self.whole + whole

    def compute(self) -> Tensor:
        """The share (); NaN of nothing."""
        return self.part / self.whole


def clopper_pearson(successes: int, trials: int, confidence: float = 0.95) -> tuple[float, float]:
    """Exact confidence interval of a probability: each side errs in at most half of 1 - confidence of the cases.

    >>> [round(bound, 4) for bound in clopper_pearson(5785, 8151)]
    [0.6997, 0.7196]

    """
    _check_interval(successes, trials, confidence)
    missed = (1 - confidence) / 2
    failures = trials - successes
    lower = stats.beta.ppf(missed, successes, failures + 1) if successes else 0.0
    upper = stats.beta.isf(missed, successes + 1, failures) if failures else 1.0
    return float(lower), float(upper)


def wilson(successes: int, trials: int, confidence: float = 0.95) -> tuple[float, float]:
    """Score interval of a probability p: all p with |successes / trials - p| <= z sqrt(p (1 - p) / trials)."""
    _check_interval(successes, trials, confidence)
    z_squared = stats.norm.isf((1 - confidence) / 2) ** 2
    centre = (successes + z_squared / 2) / (trials + z_squared)
    half = math.sqrt(z_squared * (successes * (trials - successes) / trials + z_squared / 4)) / (trials + z_squared)
    return max(0.0, float(centre - half)), min(1.0, float(centre + half))


def log10_binomial_tail(successes: int, trials: int, probability: float) -> float:
    """log10 of the chance of `successes` or more of `trials`, each with `probability`, also where it underflows.

    Trials with different probabilities are at most as likely to do so well as trials that all have their mean
    probability, as soon as `successes` exceeds trials * mean by 1 (Hoeffding 1956): pass the mean over the cells.

    >>> round(log10_binomial_tail(5785, 8151, 0.5), 1)
    -323.0

    """
    if not 0 <= successes <= trials:
        raise ValueError(f"successes must lie in [0, trials = {trials}], got {successes}")
    if not 0 <= probability <= 1:
        raise ValueError(f"probability must lie in [0, 1], got {probability}")
    if successes == 0 or probability == 1:
        return 0.0
    if probability == 0:
        return -math.inf
    if successes <= trials * probability:
        return math.log10(stats.binom.sf(successes - 1, trials, probability))
    hits = np.arange(successes, trials + 1, dtype=np.float64)
    return float(special.logsumexp(stats.binom.logpmf(hits, trials, probability))) / math.log(10)


def _array(values: ArrayLike | Tensor) -> NDArray:
    return values.detach().cpu().numpy() if isinstance(values, Tensor) else np.asarray(values)


def _smoothed(image: ArrayLike | Tensor, gaussian_sigma_px: float) -> NDArray[np.float64]:
    """Image (..., y, x) in float64 after a Gaussian along y and x, its border repeated outwards."""
    values = _array(image).astype(np.float64)
    if values.ndim < 2 or 0 in values.shape[-2:]:
        raise ValueError(f"image must have shape (..., y, x), got {values.shape}")
    if not np.isfinite(values).all():
        raise ValueError("image must be finite")
    if not 0 <= gaussian_sigma_px < math.inf:
        raise ValueError(f"gaussian_sigma_px must be finite and not negative, got {gaussian_sigma_px}")
    return ndimage.gaussian_filter(values, gaussian_sigma_px, mode="nearest", axes=(-2, -1))


def _box_iou(one: NDArray[np.int64], other: NDArray[np.int64]) -> NDArray[np.float64]:
    """Boxes (g, 4) and (r, 4) -> (g, r)."""
    first = np.maximum(one[:, None, :2], other[None, :, :2])
    last = np.minimum(one[:, None, 2:], other[None, :, 2:])
    shared = (last - first).clip(min=0).prod(axis=2)
    sizes = [(boxes[:, 2:] - boxes[:, :2]).prod(axis=1) for boxes in (one, other)]
    return shared / (sizes[0][:, None] + sizes[1][None, :] - shared)


def _share(part: int, whole: int) -> float:
    return part / whole if whole else math.nan


def _check_interval(successes: int, trials: int, confidence: float) -> None:
    if trials < 1:
        raise ValueError(f"trials must be at least 1, got {trials}")
    if not 0 <= successes <= trials:
        raise ValueError(f"successes must lie in [0, trials = {trials}], got {successes}")
    if not 0 < confidence < 1:
        raise ValueError(f"confidence must lie in (0, 1), got {confidence}")
