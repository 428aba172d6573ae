"""Planar vector fields on a pixel grid: turn, mirror, measure, with the components moving along with the pixels.

Fields are (..., component, y, x) with components in the order (x, y): x to the right along the last axis, y down the
rows. Rotations are counter-clockwise as displayed, about the centre of the array. Pixels outside the array count as 0.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn.functional import grid_sample

QUARTER_TURN_RAD = math.pi / 2
ROUNDING = 4  # in units of the angle's own precision: pi / 2 in float32 is not the quarter turn of float64
NANONEWTON_PER_PA_UM2 = 1e-3
FEMTOJOULE_PER_PA_UM3 = 1e-3


def rotate(field: Tensor, angle_rad: float | Tensor) -> Tensor:
    """Turn a vector field counter-clockwise as displayed: pixels and components.

    The component rule is x' = x cos + y sin, y' = -x sin + y cos (x right, y down).

    Args:
        field: (..., 2, y, x), floating point.
        angle_rad: one angle, or a tensor of angles over the leading dimensions (...).

    Returns:
        The shape of `field`. Multiples of pi / 2 only permute pixels and are exact; other angles are sampled bilinearly
        with zeros outside the array.

    Raises:
        ValueError: the component dimension is not 2, or a field that is not square is turned by an odd number of
            quarter turns (its shape would change).

    """
    if field.ndim < 3 or field.shape[-3] != 2:
        raise ValueError(f"field must have shape (..., 2, y, x), got {tuple(field.shape)}")
    angle = _over_leading(angle_rad, field.shape[:-3])
    turned = rotate_pixels(field, angle.unsqueeze(-1))  # each component as an image
    cos, sin = _cos_sin(angle)
    cos = cos.to(device=field.device, dtype=field.dtype)[..., None, None]
    sin = sin.to(device=field.device, dtype=field.dtype)[..., None, None]
    x, y = turned.unbind(-3)
    return torch.stack((x * cos + y * sin, y * cos - x * sin), dim=-3)


def rotate_pixels(image: Tensor, angle_rad: float | Tensor) -> Tensor:
    """Turn scalar images counter-clockwise as displayed: (..., y, x) -> the same shape.

    Args:
        image: (..., y, x), floating point.
        angle_rad: one angle, or a tensor that broadcasts over the leading dimensions (...).

    Returns:
        Multiples of pi / 2 are exact permutations of the pixels; other angles are bilinear with zero fill.

    Raises:
        ValueError: `image` is not floating point, or is not square and is turned by an odd number of quarter turns.

    """
    if image.ndim < 2 or not image.is_floating_point():
        raise ValueError(f"image must be a floating-point tensor (..., y, x), got {image.dtype} {tuple(image.shape)}")
    leading, (height, width) = image.shape[:-2], image.shape[-2:]
    angle = _over_leading(angle_rad, leading)
    quarters = _quarter_turns(angle)  # NaN where the angle is no multiple of pi / 2
    if height != width and bool((quarters % 2 == 1).any()):
        raise ValueError(
            f"field must be square to be turned by an odd number of quarter turns, got (y, x) = ({height}, {width})"
        )
    if bool(quarters.isnan().any()):
        turned = _sample_rotated(image, angle)
    else:
        turned = image
    for quarter in quarters[~quarters.isnan()].unique().tolist():
        here = (quarters == quarter).to(image.device)[..., None, None]
        turned = torch.where(here, torch.rot90(image, int(quarter), (-2, -1)), turned)
    return turned


def flip(field: Tensor, axis: str, *, spatial_dims: int = 2) -> Tensor:
    """Mirror a vector field along one axis: the pixels change places and that component changes sign.

    Args:
        field: (..., 2, y, x), or (..., 3, z, y, x) when `spatial_dims` is 3; components in the order (x, y[, z]).
        axis: "x" exchanges left and right, "y" up and down, "z" near and far (three dimensions only).
        spatial_dims: 2 or 3.

    Returns:
        The shape of `field`; exact, and its own inverse.

    Raises:
        ValueError: an unknown axis, or a shape without one component per spatial dimension.

    """
    component_dim = _component_dim(field, spatial_dims)
    axes = "xyz"[:spatial_dims]
    if axis not in tuple(axes):
        raise ValueError(f"axis must be one of {', '.join(axes)}, got {axis!r}")
    component = axes.index(axis)
    signs = torch.ones(spatial_dims, dtype=field.dtype, device=field.device)
    signs[component] = -1
    mirrored = field.flip(-1 - component)
    return mirrored * signs.reshape(-1, *[1] * (-component_dim - 1))


def magnitude(field: Tensor, *, spatial_dims: int = 2) -> Tensor:
    """Length of the vectors: (..., 2, y, x) -> (..., y, x), or in three dimensions (..., 3, z, y, x) -> (..., z, y, x).

    In the field's unit; the gradient at a zero vector is zero.

    Raises:
        ValueError: the shape does not hold one component per spatial dimension.

    """
    return torch.linalg.vector_norm(field, dim=_component_dim(field, spatial_dims))


def net_force_nn(traction_pa: Tensor, *, pixel_size_um: float) -> Tensor:
    """Sum of the traction over the field, times the pixel's area: (..., 2, y, x) in Pa -> (..., 2) in nN."""
    _component_dim(traction_pa, 2)
    return traction_pa.sum(dim=(-2, -1)) * (pixel_size_um**2 * NANONEWTON_PER_PA_UM2)


def strain_energy_fj(traction_pa: Tensor, displacement_um: Tensor, *, pixel_size_um: float) -> Tensor:
    """Work that the traction stored in the substrate: half the integral of T . u, (..., 2, y, x) -> (...) in fJ.

    Butler et al. 2002 (10.1152/ajpcell.00270.2001). Both fields are (..., 2, y, x).
    """
    _component_dim(traction_pa, 2)
    work = (traction_pa * displacement_um).sum(dim=(-3, -2, -1))
    return 0.5 * work * (pixel_size_um**2 * FEMTOJOULE_PER_PA_UM3)


def _component_dim(field: Tensor, spatial_dims: int) -> int:
    """Position of the component dimension, counted from the end."""
    if spatial_dims not in (2, 3):
        raise ValueError(f"spatial_dims must be 2 or 3, got {spatial_dims}")
    dim = -spatial_dims - 1
    if field.ndim < spatial_dims + 1 or field.shape[dim] != spatial_dims:
        expected = "(..., 2, y, x)" if spatial_dims == 2 else "(..., 3, z, y, x)"
        raise ValueError(f"field must have shape {expected}, got {tuple(field.shape)}")
    return dim


def _over_leading(angle_rad: float | Tensor, leading: torch.Size) -> Tensor:
    """The angles as a tensor over the leading dimensions; Python numbers become float64."""
    angle = angle_rad if isinstance(angle_rad, Tensor) else torch.tensor(float(angle_rad), dtype=torch.float64)
    try:
        return angle.expand(leading)
    except RuntimeError:
        raise ValueError(
            f"angle_rad must be one angle or broadcast over the leading dimensions {tuple(leading)}, "
            f"got shape {tuple(angle.shape)}"
        ) from None


def _quarter_turns(angle: Tensor) -> Tensor:
    """Number of quarter turns (0, 1, 2 or 3) where the angle is a multiple of pi / 2, NaN elsewhere."""
    quarters = angle.detach() / QUARTER_TURN_RAD
    nearest = quarters.round()
    tolerance = ROUNDING * torch.finfo(quarters.dtype).eps * nearest.abs().clamp(min=1)
    return torch.where((quarters - nearest).abs() <= tolerance, nearest % 4, torch.nan)


def _cos_sin(angle: Tensor) -> tuple[Tensor, Tensor]:
    """Cosine and sine, exact (0, 1, -1) at multiples of pi / 2."""
    quarters = _quarter_turns(angle)
    index = quarters.nan_to_num().long()
    exact_cos = torch.tensor([1, 0, -1, 0], dtype=angle.dtype, device=angle.device)[index]
    exact_sin = torch.tensor([0, 1, 0, -1], dtype=angle.dtype, device=angle.device)[index]
    other = quarters.isnan()
    return torch.where(other, torch.cos(angle), exact_cos), torch.where(other, torch.sin(angle), exact_sin)


def _sample_rotated(image: Tensor, angle: Tensor) -> Tensor:
    """Bilinear sampling of every image at the places that its rotation brings to the pixel centres; zeros outside."""
    height, width = image.shape[-2:]
    cos = torch.cos(angle).to(device=image.device, dtype=image.dtype).reshape(-1, 1, 1)
    sin = torch.sin(angle).to(device=image.device, dtype=image.dtype).reshape(-1, 1, 1)
    right = torch.arange(width, dtype=image.dtype, device=image.device) - (width - 1) / 2  # (x,) from the centre
    down = (torch.arange(height, dtype=image.dtype, device=image.device) - (height - 1) / 2)[:, None]  # (y, 1)
    source_right = right * cos - down * sin  # (n, y, x): the inverse rotation
    source_down = right * sin + down * cos
    grid = torch.stack((source_right * (2 / width), source_down * (2 / height)), dim=-1)  # -1 and 1 are the outer edges
    flat = image.reshape(-1, 1, height, width)
    return grid_sample(flat, grid, mode="bilinear", padding_mode="zeros", align_corners=False).reshape(image.shape)
