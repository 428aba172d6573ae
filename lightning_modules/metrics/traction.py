"""How well a traction field was recovered: one number per field, and their mean and spread over fields.

Sources: Wang, Lin, Biophys J 120:3079 (2021) and the authors' main/errorTrac.m, errorDspl.m, calcEnergy.m; for the
adhesion metrics Huang et al., arXiv 1810.05848 (Sci Rep 2019), used by Kratz, Moellerherm, Kierfeld, Biophys J 122:3489
(2023). With t the predicted and t0 the true traction, i the true adhesions, j the pixels of one:
    DTMA = mean_i (mean_j |t| - mean_j |t0|) / mean_j |t0|       DMA = mean_i (max_j |t| - max_j |t0|) / max_j |t0|
    DTMB = mean_background (|t| - |t0|) / mean_i mean_j |t0|     SNR = mean_i mean_j |t| / std(t in the background)
A third-party implementation of these (used in a published comparison) differs: it takes the magnitude of DTMA's mean
over i, divides DMA by mean_j |t0|, puts the true field into SNR's numerator and takes its deviation over the whole
batch with zeros in place of the adhesions.

Fields are (..., 2, y, x), components (x, y), in Pa or any one unit; masks are (..., y, x), bool. The results are (...).
A field whose denominator is zero (no traction in the mask, no adhesion, a silent background) has no value: NaN.
`FieldMean` leaves such fields out of its mean and counts them; NaN that comes from NaN or infinity in a field stays in.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from scipy import ndimage
from torch import Tensor
from torchmetrics import Metric

from physics.half_space import displacement_from_traction
from physics.vector_fields import magnitude, strain_energy_fj

EIGHT_NEIGHBOURS = np.ones((3, 3), dtype=bool)
GUESS_DEG = 90.0  # mean angle between a given direction and a random one


def nrmse(prediction: Tensor, target: Tensor, mask: Tensor) -> Tensor:
    """sqrt(sum |t - t0|^2 / sum |t0|^2) over the mask, the paper's errorTrac when the mask is the cell's interior.

    The interior holds the pixels whose centres lie inside the outline or on it. 0 is perfect, 1 what no traction gets.

    >>> truth = torch.tensor([3.0, 4.0]).reshape(2, 1, 1)
    >>> nrmse(1.1 * truth, truth, torch.ones(1, 1, dtype=torch.bool))
    tensor(0.1000)

    """
    _check_pair(prediction, target)
    return _ratio(_norm(_masked(prediction - target, mask)), _norm(_masked(target, mask)))


def nrmse_squared(prediction: Tensor, target: Tensor, mask: Tensor) -> Tensor:
    """`nrmse` squared: the share of the traction's power that was missed."""
    return nrmse(prediction, target, mask).square()


def nrmse_full(prediction: Tensor, target: Tensor) -> Tensor:
    """`nrmse` over the whole frame, so that traction invented outside the cell counts as well."""
    _check_pair(prediction, target)
    return _ratio(_norm(prediction - target), _norm(target))


def above_percentile(prediction: Tensor, target: Tensor, mask: Tensor, *, percentile: float) -> Tensor:
    """The part of a mask that errorTrac's cutoff leaves: where |t| or |t0| exceeds a percentile of |t0| in the mask.

    Args:
        prediction: (..., 2, y, x).
        target: (..., 2, y, x).
        mask: (..., y, x), bool.
        percentile: in [0, 100]; 95 compares the strongest 5 % only. MATLAB's prctile: the k-th of n sorted values is
            the 100 (k - 1/2) / n percentile, linear in between.

    Returns:
        (..., y, x), bool; empty where the mask is.

    Raises:
        ValueError: a percentile outside its range, or shapes that do not fit.

    """
    if not 0 <= percentile <= 100:
        raise ValueError(f"percentile must lie in [0, 100], got {percentile}")
    _check_pair(prediction, target)
    predicted, true = magnitude(prediction), magnitude(target)
    mask = _inside(mask, target)
    shape = (-1, *true.shape[-2:])
    thresholds = [
        float(np.percentile(field[inside], percentile, method="hazen")) if inside.any() else np.inf
        for field, inside in zip(_array(true.reshape(shape)), _array(mask.reshape(shape)), strict=True)
    ]
    threshold = true.new_tensor(thresholds).reshape(*true.shape[:-2], 1, 1)
    return mask & ((predicted > threshold) | (true > threshold))


def angle_error_deg(prediction: Tensor, target: Tensor, mask: Tensor, *, threshold: float = 0.0) -> Tensor:
    """Mean angle in degrees between predicted and true vectors where |t0| exceeds a threshold, in [0, 180].

    Args:
        prediction: (..., 2, y, x); a zero vector has no direction and counts 90, what guessing gets.
        target: (..., 2, y, x).
        mask: (..., y, x), bool.
        threshold: in the traction's unit, not negative.

    Raises:
        ValueError: a negative threshold, or shapes that do not fit.

    """
    if threshold < 0:
        raise ValueError(f"threshold must not be negative, got {threshold}")
    _check_pair(prediction, target)
    counted = _inside(mask, target) & (magnitude(target) > threshold)
    (x, y), (x0, y0) = prediction.unbind(-3), target.unbind(-3)
    angle = torch.rad2deg(torch.atan2((x * y0 - y * x0).abs(), x * x0 + y * y0))
    angle = torch.where(magnitude(prediction) == 0, GUESS_DEG, angle)
    return _ratio(torch.where(counted, angle, 0).sum(dim=(-2, -1)), counted.sum(dim=(-2, -1)))


def vector_correlation(prediction: Tensor, target: Tensor, mask: Tensor) -> Tensor:
    """Sum t . t0 / sqrt(sum |t|^2 sum |t0|^2) over the mask, in [-1, 1]: blind to the amplitude; no mean is removed."""
    _check_pair(prediction, target)
    prediction, target = _masked(prediction, mask), _masked(target, mask)
    return _ratio((prediction * target).sum(dim=(-3, -2, -1)), _norm(prediction) * _norm(target))


def share_outside(traction: Tensor, mask: Tensor) -> Tensor:
    """Sum |t| outside the mask over sum |t|, in [0, 1]; pass the cell's mask `grown` by what the resolution allows."""
    strength = magnitude(traction)
    outside = torch.where(_inside(mask, traction), 0, strength)
    return _ratio(outside.sum(dim=(-2, -1)), strength.sum(dim=(-2, -1)))


def grown(mask: Tensor, *, radius_px: float) -> Tensor:
    """The mask and every pixel within `radius_px` of one of its pixels; the paper's buffer round the outline is 10.

    Raises:
        ValueError: a negative radius, or a mask that is not bool.

    """
    if radius_px < 0:
        raise ValueError(f"radius_px must not be negative, got {radius_px}")
    _check_mask(mask)
    fields = _array(mask.reshape(-1, *mask.shape[-2:]))
    near = [ndimage.distance_transform_edt(~field) <= radius_px if field.any() else field for field in fields]
    return torch.from_numpy(np.stack(near)).reshape(mask.shape).to(mask.device)


def net_force_share(traction: Tensor) -> Tensor:
    """|sum t| / sum |t|, in [0, 1]: 0 for a cell at rest, whose tractions balance."""
    net = torch.linalg.vector_norm(traction.sum(dim=(-2, -1)), dim=-1)
    return _ratio(net, magnitude(traction).sum(dim=(-2, -1)))


def strain_energy_error(prediction: Tensor, target: Tensor, displacement: Tensor, mask: Tensor) -> Tensor:
    """(U - U0) / U0 with U the work of a traction within the mask on the true displacement; positive is too much.

    The paper's calcEnergy is twice U (it omits the factor 1/2), which cancels here.
    """
    _check_pair(prediction, target)
    _check_pair(displacement, target)
    energy = strain_energy_fj(_masked(prediction, mask), displacement, pixel_size_um=1.0)
    true_energy = strain_energy_fj(_masked(target, mask), displacement, pixel_size_um=1.0)
    return _ratio(energy - true_energy, true_energy.abs())


def forward_residual(
    traction_pa: Tensor, displacement_um: Tensor, *, mask: Tensor | None = None, **substrate: object
) -> Tensor:
    """|G t - u| / |u|: how badly a traction explains a measured displacement; needs no true traction.

    Args:
        traction_pa: (..., 2, y, x) in Pa.
        displacement_um: (..., 2, y, x) in um.
        mask: (..., y, x), bool, where the two displacements are compared (the paper's errorDspl: the outline grown by
            10 pixels); None for the whole frame.
        substrate: what `physics.half_space.displacement_from_traction` takes: pixel_size_um, youngs_modulus_pa,
            poisson_ratio and, if they are not the defaults, boundary, thickness_um, centre_element, reach,
            transfer_function.

    Returns:
        (...); NaN for a field without displacement, and for a traction that is not finite.

    """
    _check_pair(traction_pa, displacement_um)
    usable = traction_pa.isfinite().flatten(-3).all(dim=-1)[..., None, None, None]
    explained = displacement_from_traction(torch.where(usable, traction_pa, 0), **substrate)  # type: ignore[arg-type]
    rest = torch.where(usable, explained - displacement_um, torch.nan)
    if mask is None:
        return _ratio(_norm(rest), _norm(displacement_um))
    return _ratio(_norm(_masked(rest, mask)), _norm(_masked(displacement_um, mask)))


def adhesion_labels(target: Tensor) -> Tensor:
    """Number the true adhesions: connected pixels (8 neighbours) of |t0| > 0, from 1 in every field; 0 is background.

    (..., 2, y, x) -> (..., y, x), int64.
    """
    pulling = _array((magnitude(target) > 0).reshape(-1, *target.shape[-2:]))
    labels = np.stack([ndimage.label(field, structure=EIGHT_NEIGHBOURS)[0] for field in pulling]).astype(np.int64)
    return torch.from_numpy(labels).reshape(*target.shape[:-3], *target.shape[-2:]).to(target.device)


def dtma(prediction: Tensor, target: Tensor, labels: Tensor | None = None) -> Tensor:
    """Deviation of traction magnitude at adhesions: 0 is perfect, negative too weak.

    Args:
        prediction: (..., 2, y, x).
        target: (..., 2, y, x).
        labels: (..., y, x), whole numbers, 0 for background and one number per adhesion; None for `adhesion_labels` of
            the target. An adhesion without true traction is left out, here and in the other three metrics.

    """
    adhesions = _adhesions(prediction, target, labels)
    return adhesions.mean((adhesions.mean_predicted - adhesions.mean_true) / adhesions.mean_true)


def dma(prediction: Tensor, target: Tensor, labels: Tensor | None = None) -> Tensor:
    """Deviation of the maximum at adhesions, arguments as in `dtma`: 0 is perfect, negative too weak."""
    adhesions = _adhesions(prediction, target, labels)
    return adhesions.mean((adhesions.max_predicted - adhesions.max_true) / adhesions.max_true)


def dtmb(prediction: Tensor, target: Tensor, labels: Tensor | None = None) -> Tensor:
    """Deviation of traction magnitude in the background, arguments as in `dtma`: 0 is perfect, positive is noise."""
    adhesions = _adhesions(prediction, target, labels)
    excess = torch.where(adhesions.background, magnitude(prediction) - magnitude(target), 0).sum(dim=(-2, -1))
    return _ratio(
        _ratio(excess, adhesions.background.sum(dim=(-2, -1))),
        adhesions.mean(adhesions.mean_true),
    )


def snr(prediction: Tensor, target: Tensor, labels: Tensor | None = None) -> Tensor:
    """Signal at adhesions over noise in the background, arguments as in `dtma`: large is good.

    The deviation of n background vectors is sqrt(sum |t - mean t|^2 / (2 (n - 1))), that of one component when the
    noise has no direction; unlike the components' joint deviation it does not depend on how the axes lie.
    """
    adhesions = _adhesions(prediction, target, labels)
    background = adhesions.background.unsqueeze(-3)
    count = background.sum(dim=(-2, -1), keepdim=True)
    mean = torch.where(background, prediction, 0).sum(dim=(-2, -1), keepdim=True) / count
    squares = torch.where(background, prediction - mean, 0).square().sum(dim=(-3, -2, -1))
    deviation = (squares / (2 * (count[..., 0, 0, 0] - 1))).sqrt()
    return _ratio(adhesions.mean(adhesions.mean_predicted), deviation)


class FieldMean(Metric):
    """Mean over all fields seen of a number per field, in every process.

    Fields without a value (NaN although every field given is finite) are left out and counted in `left_out`. In a
    `MetricCollection` pass `compute_groups=False`: torchmetrics would merge two of these that agree on the first batch.

    Args:
        function: takes what `update` takes, returns one value per field; any function above, `functools.partial` for
            one with options.

    """

    is_differentiable = False
    full_state_update = False
    total: Tensor
    fields: Tensor
    left_out: Tensor

    def __init__(self, function: Callable[..., Tensor], **kwargs: object) -> None:
        super().__init__(**kwargs)
        self.function = function
        self.add_state("total", default=torch.tensor(0.0), dist_reduce_fx="sum")
        self.add_state("fields", default=torch.tensor(0), dist_reduce_fx="sum")
        self.add_state("left_out", default=torch.tensor(0), dist_reduce_fx="sum")

    def update(self, *fields: Tensor) -> None:
        """Add a batch: prediction, target and whatever else the function takes."""
        values = self.function(*fields)
        finite = all(bool(field.isfinite().all()) for field in fields)
        undefined = values.isnan() & finite
        self.total = self.total + torch.where(undefined, 0, values).sum().to(self.total.dtype)
        self.left_out = self.left_out + undefined.sum()
        self.fields = self.fields + (~undefined).sum()

    def compute(self) -> Tensor:
        """Mean () over the fields with a value; NaN when there was none."""
        return self.total / self.fields


class FieldSd(Metric):
    """Population standard deviation over all fields seen of a number per field; counts what `FieldMean` counts."""

    is_differentiable = False
    full_state_update = False
    sums: Tensor

    def __init__(self, function: Callable[..., Tensor], **kwargs: object) -> None:
        super().__init__(**kwargs)
        self.function = function
        self.add_state("sums", default=torch.zeros(3), dist_reduce_fx="sum")  # of 1, value, value^2

    def update(self, *fields: Tensor) -> None:
        """Add a batch: what the function takes."""
        values = self.function(*fields)
        finite = all(bool(field.isfinite().all()) for field in fields)
        counted = values[~(values.isnan() & finite)].to(self.sums.dtype)
        self.sums = self.sums + torch.stack([counted**power for power in range(3)]).sum(dim=1)

    def compute(self) -> Tensor:
        """Deviation (); 0 for one field, NaN when none had a value."""
        mean, squares = self.sums[1:] / self.sums[0]
        return (squares - mean.square()).clamp(min=0).sqrt()


class _Adhesions(NamedTuple):
    """The adhesions of all fields in one row, (adhesions,) each."""

    field: Tensor
    """Number of the field that an adhesion belongs to."""
    leading: torch.Size
    """Leading dimensions of the fields."""
    mean_predicted: Tensor
    mean_true: Tensor
    max_predicted: Tensor
    max_true: Tensor
    background: Tensor
    """(..., y, x), bool."""

    def mean(self, values: Tensor) -> Tensor:
        """Mean over the adhesions of each field, (...); NaN for a field without."""
        fields = self.leading.numel()
        total = values.new_zeros(fields).index_add(0, self.field, values)
        return _ratio(total, torch.bincount(self.field, minlength=fields)).reshape(self.leading)


def _adhesions(prediction: Tensor, target: Tensor, labels: Tensor | None) -> _Adhesions:
    _check_pair(prediction, target)
    if labels is None:
        labels = adhesion_labels(target)
    if labels.is_floating_point() or labels.is_complex() or bool((labels < 0).any()):
        raise ValueError("labels must be whole numbers, 0 for background and positive for adhesions")
    labels = _over_fields("labels", labels, target)
    leading, pixels = labels.shape[:-2], labels.shape[-2:].numel()
    flat = labels.reshape(-1, pixels)
    inside = flat > 0
    stride = int(flat.max()) + 1 if flat.numel() else 1
    numbered = flat + stride * torch.arange(flat.shape[0], device=flat.device)[:, None]
    adhesions, of_pixel, sizes = torch.unique(numbered[inside], return_inverse=True, return_counts=True)
    means, maxima = [], []
    for field in (prediction, target):
        strength = magnitude(field).reshape(-1, pixels)[inside]
        empty = strength.new_zeros(len(adhesions))
        means.append(empty.index_add(0, of_pixel, strength) / sizes)
        maxima.append(empty.scatter_reduce(0, of_pixel, strength, "amax", include_self=False))
    pulling = means[1] > 0
    return _Adhesions(
        field=(adhesions // stride)[pulling],
        leading=leading,
        mean_predicted=means[0][pulling],
        mean_true=means[1][pulling],
        max_predicted=maxima[0][pulling],
        max_true=maxima[1][pulling],
        background=labels == 0,
    )


def _ratio(numerator: Tensor, denominator: Tensor) -> Tensor:
    """The quotient; NaN where the denominator is zero, with a gradient that stays finite elsewhere."""
    defined = denominator != 0
    return torch.where(defined, numerator / torch.where(defined, denominator, 1), torch.nan)


def _norm(field: Tensor) -> Tensor:
    return torch.linalg.vector_norm(field, dim=(-3, -2, -1))


def _masked(field: Tensor, mask: Tensor) -> Tensor:
    """The field where the mask holds, 0 elsewhere, whatever stood there."""
    return torch.where(_inside(mask, field).unsqueeze(-3), field, 0)


def _inside(mask: Tensor, field: Tensor) -> Tensor:
    _check_mask(mask)
    return _over_fields("mask", mask, field)


def _over_fields(name: str, pixels: Tensor, field: Tensor) -> Tensor:
    """A mask or label map as (..., y, x) over the fields; one without leading dimensions serves all."""
    shape = torch.Size((*field.shape[:-3], *field.shape[-2:]))
    if pixels.shape not in (shape, shape[-2:]):
        raise ValueError(f"{name} must have shape {tuple(shape)}, got {tuple(pixels.shape)}")
    return pixels.expand(shape)


def _array(tensor: Tensor) -> np.ndarray:
    return tensor.detach().cpu().numpy()


def _check_mask(mask: Tensor) -> None:
    if mask.dtype != torch.bool or mask.ndim < 2:
        raise ValueError(f"mask must be bool of shape (..., y, x), got {mask.dtype} {tuple(mask.shape)}")


def _check_pair(prediction: Tensor, target: Tensor) -> None:
    if prediction.shape != target.shape or target.ndim < 3 or target.shape[-3] != 2:
        raise ValueError(
            f"both fields must have one shape (..., 2, y, x), got {tuple(prediction.shape)} and {tuple(target.shape)}"
        )
