"""A dense block that holds every map once, for training too.

Layer k of a dense block (Huang et al., "Densely connected convolutional networks", CVPR 2017) reads the maps of all
layers before it. Written with concatenations, a block of n layers keeps each map about n times over, and the normalised
maps as often again. Here all maps lie in one tensor that each layer reads from the front of and adds to, and the
backward pass computes the normalised maps anew (the idea of Pleiss et al., "Memory-efficient implementation of
DenseNets", arXiv 1707.06990). What is kept is the block's output and dropout's masks; no convolution runs twice.

A map has the same mean and variance for every layer that reads it, so they are computed once, and so is their part of
the gradient: with x' = (x - m) / s, layer k's scale a_k and the gradient g_k of its normalised maps, A = sum_k a_k g_k,
    dL/dx = (A - mean(A) - x' mean(A x')) / s      dL/da_k = sum(g_k x')      dL/db_k = sum(g_k).

Under torch.compile the block is written with concatenations, which the compiler then plans itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional

NORM_EPSILON = 1.1e-5
NORM_MOMENTUM = 0.01
"""Share of the newest batch in the running statistics; Keras writes 0.99."""
PIXELS = (0, 2, 3)
TENSORS_OF_A_LAYER = 5  # kernel, weight, bias, running mean and variance or None


def batch_norm(channels: int) -> nn.BatchNorm2d:
    """Batch normalisation with the numbers of the authors' code."""
    return nn.BatchNorm2d(channels, eps=NORM_EPSILON, momentum=NORM_MOMENTUM)


class DenseLayer(nn.Module):
    """Batch normalisation, ReLU, 3 x 3 convolution without bias, dropout of single values.

    Args:
        in_channels: maps that it reads (#).
        growth: maps that it adds (#).
        dropout_rate: in [0, 1).

    """

    def __init__(self, in_channels: int, growth: int, dropout_rate: float) -> None:
        super().__init__()
        self.norm = batch_norm(in_channels)
        self.conv = nn.Conv2d(in_channels, growth, kernel_size=3, padding=1, bias=False)
        self.dropout = nn.Dropout(dropout_rate)

    def forward(self, maps: Tensor) -> Tensor:
        """Maps (batch, in_channels, y, x) -> the new ones, (batch, growth, y, x)."""
        return self.dropout(self.conv(self.norm(maps).relu()))


class DenseBlock(nn.Module):
    """Layers of which each reads the block's input and the maps of all layers before it.

    The layers are normalised by the batch or by running statistics, and drop out or not, all alike: their modes are
    those of the first. Gradients of gradients are not available. Where `generators` is set, one per image of the batch,
    dropout takes each image's mask from its own, so that it does not depend on the rest of the batch.

    Args:
        in_channels: maps of the input (#).
        layers: layers (#).
        growth: maps that each adds (#).
        dropout_rate: in [0, 1).

    """

    generators: Sequence[torch.Generator] | None = None

    def __init__(self, in_channels: int, *, layers: int, growth: int, dropout_rate: float) -> None:
        super().__init__()
        self.new_channels = layers * growth
        self.layers = nn.ModuleList(
            DenseLayer(in_channels + index * growth, growth, dropout_rate) for index in range(layers)
        )

    def forward(self, *sources: Tensor) -> Tensor:
        """Sources (batch, ..., y, x), their channels in turn the input -> input and new maps, (batch, channels, y, x).

        Raises:
            ValueError: in training, one value per channel, which has no variance; generators that are too few or many.
        """
        if self.generators is not None and len(self.generators) != len(sources[0]):
            raise ValueError(f"generators must be one per image, got {len(self.generators)} for {len(sources[0])}")
        if torch.compiler.is_compiling():
            maps = torch.cat(sources, dim=1)
            for layer in self.layers:
                maps = torch.cat((maps, layer(maps)), dim=1)
            return maps
        first: Any = self.layers[0]
        values = sources[0].numel() // sources[0].shape[1]
        if first.norm.training and values < 2:
            raise ValueError(
                f"image must be larger, or the batch: a dense block got maps of {tuple(sources[0].shape)}, and batch "
                "normalisation needs more than one value per channel in training"
            )
        device = sources[0].device.type
        dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else sources[0].dtype
        plan = _Plan(
            sources=len(sources),
            batch_statistics=first.norm.training,
            dropout_rate=first.dropout.p if first.dropout.training else 0.0,
            dtype=dtype,
            generators=self.generators,
        )
        tensors = [
            tensor
            for layer in self.layers
            for tensor in (
                layer.conv.weight.to(dtype),
                layer.norm.weight,
                layer.norm.bias,
                *((None, None) if plan.batch_statistics else (layer.norm.running_mean, layer.norm.running_var)),
            )
        ]
        maps, mean, variance = _Grow.apply(plan, *sources, *tensors)
        if plan.batch_statistics:
            with torch.no_grad():
                for layer in self.layers:
                    _follow(layer.norm, mean, variance * (values / (values - 1)))
        return maps


class _Plan(NamedTuple):
    """How a block is run."""

    sources: int
    batch_statistics: bool
    dropout_rate: float
    """0 where dropout is off."""
    dtype: torch.dtype
    """Of the maps; sums over pixels are at least float32."""
    generators: Sequence[torch.Generator] | None
    """Of dropout, one per image; None for torch's global one."""


class _Layer(NamedTuple):
    """What one layer computes with; per-channel tensors are (channels, 1, 1), at least float32."""

    kernel: Tensor
    """(growth, channels, 3, 3)."""
    weight: Tensor
    bias: Tensor
    mean: Tensor
    inverse_sd: Tensor

    def activate(self, maps: Tensor, room: Tensor) -> Tensor:
        """All maps of the block -> the convolution's input, (batch, channels, y, x), written into `room`."""
        scale = self.weight * self.inverse_sd
        seen = maps[:, : len(scale)]
        into = _shaped(room, seen)
        return torch.addcmul(self.bias - self.mean * scale, seen, scale, out=into).relu_()


class _Grow(torch.autograd.Function):
    """A dense block: plan, sources and five tensors a layer -> maps, and mean and variance of those that are read."""

    @staticmethod
    def forward(ctx: Any, plan: _Plan, *tensors: Any) -> tuple[Tensor, Tensor, Tensor]:
        sources, parameters = tensors[: plan.sources], tensors[plan.sources :]
        growth = len(parameters[0])
        filled = sum(source.shape[1] for source in sources)
        maps = _empty_maps(sources[-1], filled + growth * (len(parameters) // TENSORS_OF_A_LAYER), plan.dtype)
        start = 0
        for source in sources:
            maps[:, start : start + source.shape[1]] = source
            start += source.shape[1]
        wide = torch.promote_types(plan.dtype, torch.float32)
        mean, variance = maps.new_zeros((2, maps.shape[1] - growth, 1, 1), dtype=wide)
        room = _room(maps, len(mean))
        measured, masks = 0, []
        for index in range(0, len(parameters), TENSORS_OF_A_LAYER):
            if plan.batch_statistics:
                variance[measured:filled], mean[measured:filled] = _moments(maps[:, measured:filled].to(wide))
                measured = filled
            layer = _layer(parameters[index : index + TENSORS_OF_A_LAYER], mean, variance, plan)
            new = functional.conv2d(layer.activate(maps, room), layer.kernel, padding=1)
            if plan.dropout_rate:
                new, mask = _drop_out(new, plan)
                masks.append(mask)
            maps[:, filled : filled + growth] = new
            filled += growth
        ctx.plan = plan
        ctx.sources = [(source.shape[1], source.dtype) for source in sources]
        ctx.save_for_backward(maps, mean, variance, *parameters, *masks)
        mean, variance = mean.flatten(), variance.flatten()
        ctx.mark_non_differentiable(mean, variance)
        return maps, mean, variance

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
        plan: _Plan = ctx.plan
        maps, mean, variance, *rest = ctx.saved_tensors
        layers = (len(rest) // (TENSORS_OF_A_LAYER + bool(plan.dropout_rate))) * TENSORS_OF_A_LAYER
        parameters, masks = rest[:layers], rest[layers:]
        growth, values = len(parameters[0]), maps.numel() // maps.shape[1]
        read = len(mean)
        through = torch.zeros_like(maps[:, :read], dtype=mean.dtype)  # A of the module's docstring
        total, along = torch.zeros_like(mean), torch.zeros_like(mean)  # sum A, sum A x'
        inverse_sd = (variance + NORM_EPSILON).rsqrt()
        room = _room(maps, read)

        def whole(first: int, last: int) -> Tensor:
            """Gradient of the maps first to last, whose readers are all done."""
            if first >= read:
                return grad[:, first:last]
            channels = slice(first, last)
            if not plan.batch_statistics:
                return grad[:, channels] + through[:, channels]
            s, slope = inverse_sd[channels], along[channels] * inverse_sd[channels] ** 2 / values
            constant = mean[channels] * slope - total[channels] * s / values
            own = torch.addcmul(constant, through[:, channels], s)
            return own.addcmul_(maps[:, channels], slope, value=-1).add_(grad[:, channels])

        gradients: list[Tensor | None] = []
        for index in reversed(range(0, layers, TENSORS_OF_A_LAYER)):
            layer = _layer(parameters[index : index + TENSORS_OF_A_LAYER], mean, variance, plan)
            seen = len(layer.mean)
            new = whole(seen, seen + growth)
            if plan.dropout_rate:
                new = new * masks[index // TENSORS_OF_A_LAYER] * (1 / (1 - plan.dropout_rate))
            active = layer.activate(maps, room)
            inward, kernel, _bias = torch.ops.aten.convolution_backward(
                *(new.to(plan.dtype), active, layer.kernel, None),
                *([1, 1], [1, 1], [1, 1], False, [0, 0], 1, [True, True, False]),
            )
            torch.ops.aten.threshold_backward(inward, active, 0, grad_input=inward)
            inward = inward.to(mean.dtype)
            bias = inward.sum(PIXELS)[:, None, None]
            centred = torch.sub(maps[:, :seen], layer.mean, out=active if active.dtype == mean.dtype else None)
            weight = centred.mul_(inward).sum(PIXELS)[:, None, None] * layer.inverse_sd
            total[:seen] += layer.weight * bias
            along[:seen] += layer.weight * weight
            scale = layer.weight if plan.batch_statistics else layer.weight * layer.inverse_sd
            through[:, :seen].addcmul_(inward, scale)
            kind = parameters[index + 1].dtype
            gradients = [kernel, weight.flatten().to(kind), bias.flatten().to(kind), None, None, *gradients]
        start = 0
        into: list[Tensor | None] = []
        for channels, dtype in ctx.sources:
            into.append(whole(start, start + channels).to(dtype))
            start += channels
        return None, *into, *gradients


def _drop_out(new: Tensor, plan: _Plan) -> tuple[Tensor, Tensor]:
    """New maps (batch, growth, y, x) -> what dropout leaves of them, and where."""
    if plan.generators is None:
        dropped, mask = torch.native_dropout(new, plan.dropout_rate, True)
        return dropped, mask
    keep, mask = 1 - plan.dropout_rate, torch.empty_like(new, dtype=torch.bool)
    for one, generator in zip(mask, plan.generators, strict=True):
        one.copy_(torch.empty(one.shape, dtype=torch.bool, device=new.device).bernoulli_(keep, generator=generator))
    return new * mask * (1 / keep), mask


def _layer(tensors: Sequence[Any], mean: Tensor, variance: Tensor, plan: _Plan) -> _Layer:
    """Kernel, weight, bias, running mean and variance (or None), the batch's of all maps -> what the layer takes."""
    kernel, *others = tensors
    if plan.batch_statistics:
        channels = len(others[0])
        moments = [mean[:channels], variance[:channels]]
    else:
        moments = [running.to(mean.dtype)[:, None, None] for running in others[2:]]
    weight, bias = (tensor.to(mean.dtype)[:, None, None] for tensor in others[:2])
    return _Layer(kernel, weight, bias, moments[0], (moments[1] + NORM_EPSILON).rsqrt())


def _moments(maps: Tensor) -> tuple[Tensor, Tensor]:
    """Maps (batch, channels, y, x) -> variance and mean of each, (channels, 1, 1), faster than `torch.var_mean`."""
    values = maps.numel() // maps.shape[1]
    mean = maps.sum(PIXELS)[:, None, None] / values
    return (maps - mean).square_().sum(PIXELS)[:, None, None] / values, mean


def _room(maps: Tensor, channels: int) -> Tensor:
    """Room for the activations of up to `channels` maps, which one layer after the other writes anew.

    Memory of this size that is asked for at every layer comes from the system each time, whose zeroing of pages then
    costs more than the arithmetic.
    """
    return maps.new_empty(channels * (maps.numel() // maps.shape[1]))


def _shaped(room: Tensor, like: Tensor) -> Tensor:
    """The front of `room` in the shape of `like`, (batch, channels, y, x), without gaps."""
    batch, channels, height, width = like.shape
    front = room[: like.numel()]
    if like.stride(1) == 1 and channels > 1:
        return front.view(batch, height, width, channels).permute(0, 3, 1, 2)
    return front.view(batch, channels, height, width)


def _empty_maps(like: Tensor, channels: int, dtype: torch.dtype) -> Tensor:
    """(batch, channels, y, x) in the memory format of `like`."""
    last = like.is_contiguous(memory_format=torch.channels_last) and not like.is_contiguous()
    memory_format = torch.channels_last if last else torch.contiguous_format
    shape = (like.shape[0], channels, *like.shape[2:])
    return torch.empty(shape, dtype=dtype, device=like.device, memory_format=memory_format)


def _follow(norm: nn.BatchNorm2d, mean: Tensor, variance: Tensor) -> None:
    """Move the running statistics towards those of the batch, of which the first channels are this layer's."""
    for running, batch in ((norm.running_mean, mean), (norm.running_var, variance)):
        running.lerp_(batch[: len(running)].to(running.dtype), NORM_MOMENTUM)
    norm.num_batches_tracked += 1
