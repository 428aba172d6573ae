"""Networks of the paper `dl_tfm`: published sizes, the one-way coupling, the 2-D arithmetic, and the plain sibling."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional

from lightning_modules.networks.kratz_unet import KratzUNet
from lightning_modules.networks.planar_unet import PlanarUNet
from lightning_modules.networks.traction_unet import PlaneConvolution, TractionUNet3d

CONVOLUTIONS = [  # in, out: createTracnet.m from top to bottom, the inputs after its concatenations
    *((1, 32), (32, 64), (64, 64), (64, 128), (128, 128), (128, 256)),
    *((256, 128), (128, 256), (512, 64), (64, 128), (256, 32), (32, 64), (128, 1), (1, 32), (32, 1)),
]
NORMALISED = [32, 64, 128, 128, 256, 64, 128, 32, 64, 1, 32]
DOUBLED = [256, 128, 64]
VARIANTS = [("faithful", 2, 4_025_892), ("symmetric", 3, 5_649_924)]
NETWORKS = [TractionUNet3d, KratzUNet, PlanarUNet]
SETTINGS = settings(deadline=None, derandomize=True, max_examples=15)


def count(network):
    return sum(parameter.numel() for parameter in network.parameters() if parameter.requires_grad)


def field(*shape, seed=0, dtype=torch.float64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


@pytest.fixture(autouse=True)
def _same_start():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        yield


@pytest.mark.parametrize(("variant", "kernel_planes", "total"), VARIANTS)
def test_tracnet_has_the_published_layers(variant, kernel_planes, total):
    network = TractionUNet3d(variant)
    by_hand = (
        sum(9 * kernel_planes * before * after + after for before, after in CONVOLUTIONS)
        + sum(2 * channels for channels in NORMALISED)
        + sum(9 * channels * channels + channels for channels in DOUBLED)
    )
    assert count(network) == by_hand == total
    shapes = [tuple(layer.weight.shape) for layer in network.modules() if isinstance(layer, PlaneConvolution)]
    assert sorted(shapes) == sorted((after, before, kernel_planes, 3, 3) for before, after in CONVOLUTIONS)
    leaves = [layer for layer in network.modules() if not list(layer.children())]
    assert len(leaves) + 3 + 2 == 51  # three concatenations, the input and the regression layer


def test_tracnet_starts_narrow_and_without_bias():
    for layer in TractionUNet3d().modules():
        if isinstance(layer, PlaneConvolution | nn.ConvTranspose2d):
            assert layer.bias.abs().max() == 0
            if layer.weight.numel() > 10_000:
                assert layer.weight.std().item() == pytest.approx(0.01, rel=0.02)
                assert abs(layer.weight.mean().item()) < 3e-4


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel:UserWarning")
@pytest.mark.parametrize("kernel_planes", [2, 3])
def test_plane_convolution_equals_a_3d_convolution(kernel_planes):
    layer = PlaneConvolution(5, 7, kernel_planes).double()
    published = nn.Conv3d(5, 7, (kernel_planes, 3, 3), padding="same").double()
    published.load_state_dict(layer.state_dict())
    nn.init.normal_(layer.bias)
    published.bias = layer.bias
    volume = field(3, 5, 2, 8, 9)
    planes = layer(volume.transpose(1, 2).flatten(0, 1)).unflatten(0, (3, 2)).transpose(1, 2)
    torch.testing.assert_close(planes, published(volume), atol=1e-14, rtol=1e-12)


def published_tracnet(network, displacement):
    """The network in three dimensions, as createTracnet.m writes it, with this network's weights, in training mode."""

    def convolve(layer, volume):
        depth = layer.weight.shape[2]
        return functional.conv3d(functional.pad(volume, (1, 1, 1, 1, 0 if depth == 2 else 1, 1)), *layer.parameters())

    def apply(layers, volume):
        for layer in layers:
            if isinstance(layer, PlaneConvolution):
                volume = convolve(layer, volume)
            elif isinstance(layer, nn.BatchNorm2d):
                volume = functional.batch_norm(volume, None, None, layer.weight, layer.bias, training=True, eps=1e-5)
            else:
                volume = volume.relu()
        return volume

    volume, skips = displacement.unsqueeze(1), []  # (batch, 1, 2, y, x)
    for encoder in network.encoders:
        skips.append(apply(encoder, volume))
        volume = functional.max_pool3d(skips[-1], (1, 2, 2))
    volume = apply(network.bottom, volume)
    for doubling, decoder in zip(network.doublings, network.decoders, strict=True):
        weight = doubling.weight.unsqueeze(2)  # (in, out, 1, 3, 3)
        doubled = functional.conv_transpose3d(volume, weight, doubling.bias, stride=(1, 2, 2))
        volume = apply(decoder, torch.cat((skips.pop(), doubled[..., :-1, :-1]), dim=1))
    return convolve(network.last, volume).squeeze(1)


@pytest.mark.parametrize("variant", ["faithful", "symmetric"])
def test_tracnet_in_two_dimensions_is_tracnet_in_three(variant):
    network = TractionUNet3d(variant).double()
    for parameter in network.parameters():
        if parameter.ndim == 1:
            nn.init.normal_(parameter)
    displacement = field(2, 2, 16, 24)
    expected = published_tracnet(network, displacement)
    torch.testing.assert_close(network(displacement), expected, atol=1e-12, rtol=1e-9)
    assert expected.std() > 1e-3


@pytest.mark.parametrize(("variant", "y_sees_x"), [("faithful", False), ("symmetric", True)])
def test_faithful_y_traction_is_blind_to_the_x_displacement_and_only_there(variant, y_sees_x):
    network = TractionUNet3d(variant).double().eval()
    displacement = field(1, 2, 16, 16).requires_grad_()
    traction = network(displacement)
    (from_x,) = torch.autograd.grad(traction[:, 0].sum(), displacement, retain_graph=True)
    (from_y,) = torch.autograd.grad(traction[:, 1].sum(), displacement)
    assert from_x[:, 0].abs().max() > 0
    assert from_x[:, 1].abs().max() > 0
    assert from_y[:, 1].abs().max() > 0
    assert (from_y[:, 0].abs().max() > 0).item() is y_sees_x


def test_symmetric_tracnet_tells_the_components_apart():
    network = TractionUNet3d("symmetric").double().eval()
    displacement = field(1, 2, 16, 16)
    exchanged = network(displacement.flip(1)).flip(1)
    traction = network(displacement)
    assert (exchanged - traction).abs().max() > 1e-3 * (traction - traction.mean()).abs().max()


@pytest.mark.parametrize("shape", [(1, 2, 104, 104), (2, 2, 8, 24)])
@pytest.mark.parametrize("make", NETWORKS)
def test_networks_keep_the_shape_and_the_gradient_reaches_every_weight(make, shape):
    network = make()
    traction = network(field(*shape, dtype=torch.float32))
    assert traction.shape == shape
    traction.square().sum().backward()
    for name, parameter in network.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name


@pytest.mark.parametrize("make", NETWORKS)
def test_networks_give_each_field_its_own_answer_in_evaluation(make):
    network = make().double().eval()
    fields = field(3, 2, 16, 16)
    torch.testing.assert_close(network(fields)[1:2], network(fields[1:2]), atol=1e-13, rtol=1e-9)


@pytest.mark.parametrize("make", NETWORKS)
def test_networks_refuse_other_shapes(make):
    with pytest.raises(ValueError, match="displacement must have shape"):
        make()(torch.zeros(1, 3, 16, 16))
    if make is not PlanarUNet:
        with pytest.raises(ValueError, match="divisible by 8"):
            make()(torch.zeros(1, 2, 16, 12))


def test_kratz_unet_has_the_published_numbers():
    network = KratzUNet()
    assert count(network) == 223_972
    moving = sum(b.numel() for name, b in network.named_buffers() if name.endswith(("running_mean", "running_var")))
    assert count(network) + moving == 224_572
    kernels = sorted(tuple(p.shape) for p in network.parameters() if p.ndim == 4)
    convolutions = [(2, 10), (10, 20), (20, 40), (40, 160), (80, 40), (40, 20), (20, 10)]
    doublings = [(160, 40), (40, 20), (20, 10)]
    expected = [(after, before, 3, 3) for before, after in convolutions] + [(*pair, 4, 4) for pair in doublings]
    assert kernels == sorted([*expected, (2, 10, 1, 1)])
    assert {layer.negative_slope for layer in network.modules() if isinstance(layer, nn.LeakyReLU)} == {0.3}
    assert [layer.p for layer in network.modules() if isinstance(layer, nn.Dropout)] == [0.1] * 4


def test_kratz_unet_starts_as_keras_does():
    for layer in KratzUNet().modules():
        if isinstance(layer, nn.Conv2d | nn.ConvTranspose2d):
            assert layer.bias.abs().max() == 0
        if isinstance(layer, nn.Conv2d) and layer.weight.numel() > 5000:
            sd = math.sqrt(2 / layer.weight[0].numel())
            assert layer.weight.std().item() == pytest.approx(sd, rel=0.05)
            assert layer.weight.abs().max() <= 2 * sd / 0.8796
        if isinstance(layer, nn.BatchNorm2d):
            assert (layer.eps, layer.momentum) == (1e-3, 0.01)


def test_kratz_unet_drops_values_in_training_only():
    network, displacement = KratzUNet(), field(1, 2, 16, 16, dtype=torch.float32)
    assert not network(displacement).equal(network(displacement))
    network.eval()
    assert network(displacement).equal(network(displacement))
    with pytest.raises(ValueError, match="dropout"):
        KratzUNet(dropout=1.0)


def test_planar_unet_has_the_size_it_states():
    assert count(PlanarUNet()) == 629_490
    levels = [(2, 16), (16, 32), (32, 64)]
    by_hand = sum(9 * (i * o + o * o) + 2 * o for i, o in levels)  # down
    by_hand += 9 * (64 * 128 + 2 * 128 * 128) + 3 * 128  # bottom
    by_hand += sum(4 * 2 * o * o + o + 9 * (2 * o * o + o * o) + 2 * o for _, o in levels)  # up
    assert by_hand + 16 * 2 + 2 == 629_490


@pytest.mark.parametrize(("height", "width", "depth"), [(13, 30, 3), (1, 1, 2), (7, 16, 4)])
def test_planar_unet_pads_any_size_with_zeros_and_crops_back(height, width, depth):
    network = PlanarUNet(3, 1, width=4, depth=depth, scale_equivariant=False).double()
    image = field(2, 3, height, width)
    traction = network(image)
    assert traction.shape == (2, 1, height, width)
    step = 2**depth
    larger = torch.zeros(2, 3, math.ceil(height / step) * step, math.ceil(width / step) * step, dtype=torch.float64)
    larger[..., :height, :width] = image
    torch.testing.assert_close(traction, network(larger)[..., :height, :width], atol=1e-14, rtol=1e-10)


@SETTINGS
@given(exponent=st.floats(-15, 15), seed=st.integers(0, 100))
def test_planar_unet_is_equivariant_to_the_amplitude_of_each_field(exponent, seed):
    network = PlanarUNet(width=4, depth=2).double()
    displacement, factor = field(2, 2, 8, 9, seed=seed), 10.0**exponent
    scaled = torch.stack((displacement[0] * factor, displacement[1]))
    traction = network(displacement)
    torch.testing.assert_close(network(scaled)[0], traction[0] * factor, rtol=1e-9, atol=1e-11 * factor)
    torch.testing.assert_close(network(scaled)[1], traction[1], rtol=0, atol=1e-13)
    without = PlanarUNet(width=4, depth=2, scale_equivariant=False).double()
    for layer in without.modules():
        if isinstance(layer, nn.Conv2d):
            nn.init.ones_(layer.bias)
    assert not torch.allclose(without(3 * displacement), 3 * without(displacement))


def test_planar_unet_answers_no_displacement_with_no_traction():
    network = PlanarUNet(width=4, depth=2)
    for layer in network.modules():
        if isinstance(layer, nn.Conv2d):
            nn.init.ones_(layer.bias)
    still = torch.zeros(1, 2, 8, 8, requires_grad=True)
    traction = network(still)
    assert traction.abs().max() == 0
    traction.sum().backward()
    assert still.grad.isfinite().all()


@pytest.mark.parametrize("name", ["in_channels", "out_channels", "width", "depth"])
def test_planar_unet_names_the_argument_it_refuses(name):
    with pytest.raises(ValueError, match=name):
        PlanarUNet(**{name: 0})


def test_tracnet_names_the_argument_it_refuses():
    with pytest.raises(ValueError, match="variant must be one of faithful, symmetric"):
        TractionUNet3d("circular")
    with pytest.raises(ValueError, match="kernel_planes"):
        PlaneConvolution(1, 1, 4)
