"""Networks of the paper `tfill`: published sizes, what each layer computes, and the two baselines' networks."""

import io
import math

import pytest
import torch
from torch import nn
from torch.nn import functional

from lightning_modules.networks.cyclegan import ImagePool, ResNetGenerator
from lightning_modules.networks.pix2pix import PatchDiscriminator, Pix2PixUNet
from lightning_modules.networks.stylegan2_discriminator import (
    Blur,
    EqualisedConvolution,
    HalvingBlock,
    StyleGAN2Discriminator,
    minibatch_deviation,
)
from lightning_modules.networks.tfill_generator import (
    AttentionLayer,
    BorderScaledConvolution,
    NoiseInjection,
    PixelNorm,
    ResidualBlock,
    TFillGenerator,
)

SMALL = {"width": 4, "layers": 2, "heads": 2, "feed_forward": 16}
ENCODER, TRANSFORMER, DECODER = 3_328_576, 38_374_912, 22_475_783
EXACT = {"atol": 1e-12, "rtol": 1e-12}


def count(network):
    return sum(parameter.numel() for parameter in network.parameters())


def field(*shape, seed=0, dtype=torch.float64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


@pytest.fixture(autouse=True)
def _same_start():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        yield


def test_tfill_has_the_published_sizes():
    with torch.device("meta"):
        network, quiet = TFillGenerator(), TFillGenerator(noise=False)
        plain = TFillGenerator(noise=False, decoder_attention=False)
    assert [count(part) for part in (network.encoder, network.transformer, network.decoder)] == [
        ENCODER,
        TRANSFORMER,
        DECODER,
    ]
    assert count(network) == 64_179_271
    assert count(quiet) == 64_179_263
    assert count(plain.decoder) == 16_695_295
    assert {count(layer) for layer in network.transformer.layers} == {3_151_360}
    assert len(network.transformer.layers) == 12
    assert {layer.heads for layer in network.modules() if isinstance(layer, AttentionLayer)} == {8}


@pytest.mark.parametrize("size", [256, 384])
def test_published_tfill_takes_both_image_sizes(size):
    with torch.device("meta"):
        network = TFillGenerator()
        assert network.encoder(torch.zeros(1, 3, size, size)).shape == (1, 512, size // 16, size // 16)
        images = network.pyramid(torch.zeros(2, 3, size, size))
    assert [tuple(image.shape) for image in images] == [(2, 3, size // k, size // k) for k in (16, 8, 4, 2, 1)]


def test_small_tfill_writes_images_within_their_range():
    network = TFillGenerator(image_channels=1, **SMALL)
    images = network.pyramid(field(2, 1, 32, 48, dtype=torch.float32))
    assert [tuple(image.shape[1:]) for image in images] == [(1, 32 // k, 48 // k) for k in (16, 8, 4, 2, 1)]
    assert all(image.abs().max() <= 1 for image in images)
    torch.testing.assert_close(network(field(2, 1, 32, 48, dtype=torch.float32)), images[-1])


def test_gradient_of_the_last_image_reaches_every_parameter():
    network = TFillGenerator(**SMALL).double()
    network(0.1 * field(2, 3, 32, 32)).square().mean().backward()
    dead = [name for name, p in network.named_parameters() if p.grad is None or p.grad.abs().max() == 0]
    # a constant shift of the keys changes no softmax
    assert [name for name in dead if not name.endswith("key.bias")] == []


def test_a_token_sees_its_own_patch_and_the_image_sees_all():
    network = TFillGenerator(**SMALL).double().eval()
    image, changed = field(1, 3, 64, 48), field(1, 3, 64, 48)
    changed[..., 16:32, 32:48] += 1
    moved = (network.encoder(changed) - network.encoder(image)).abs().amax(dim=1)[0]
    assert moved[1, 2] > 1e-3
    moved[1, 2] = 0
    assert moved.max() == 0
    assert ((network(changed) - network(image)).abs().amax(dim=1) > 0).double().mean() > 0.99


def test_shuffled_patches_differ_only_by_their_positions():
    network = TFillGenerator(**SMALL).double()
    tokens = field(2, 64, 3, 4)
    with_position = network.transformer(tokens.flip(-1)) - network.transformer(tokens).flip(-1)
    assert with_position.abs().max() > 1e-6
    nn.init.zeros_(network.transformer.column_position)
    torch.testing.assert_close(network.transformer(tokens.flip(-1)), network.transformer(tokens).flip(-1), **EXACT)


def test_attention_puts_the_position_into_queries_and_keys_only():
    layer = AttentionLayer(8, heads=2, feed_forward=12).double()
    tokens, position = field(3, 8, 2, 5), field(10, 8, seed=1)
    rms = tokens.square().mean(dim=1, keepdim=True).sqrt()
    values = (tokens / rms).flatten(2).transpose(1, 2)
    projected = [
        functional.linear(source, projection.weight, projection.bias).reshape(3, 10, 2, 4)
        for source, projection in (
            (values + position, layer.query),
            (values + position, layer.key),
            (values, layer.value),
        )
    ]
    weights = torch.einsum("bihc,bjhc->bhij", projected[0], projected[1]).div(math.sqrt(4)).softmax(dim=-1)
    attended = torch.einsum("bhij,bjhc->bihc", weights, projected[2]).reshape(3, 10, 8)
    after = tokens + layer.joined(attended).transpose(1, 2).reshape(3, 8, 2, 5)
    _, wide, _, narrow = layer.feed_forward
    normed = after / after.square().mean(dim=1, keepdim=True).sqrt()
    expected = after + narrow(functional.gelu(wide(normed)))
    torch.testing.assert_close(layer(tokens, position), expected, atol=1e-6, rtol=1e-6)  # the norm's epsilon


def test_pixel_norm_divides_by_the_root_mean_square_and_removes_no_mean():
    features = torch.tensor([3.0, 4.0, 0.0, 0.0]).reshape(1, 4, 1, 1)
    torch.testing.assert_close(PixelNorm(4)(features), features / 2.5)
    torch.testing.assert_close(PixelNorm(4)(torch.full((1, 4, 2, 2), 7.0)), torch.ones(1, 4, 2, 2))


@pytest.mark.parametrize("shape", [(5, 7), (2, 2), (1, 4)])
def test_border_scaled_convolution_is_a_partial_convolution_without_holes(shape):
    layer = BorderScaledConvolution(2, 3).double()
    features = field(2, 2, *shape)
    taps = functional.conv2d(torch.ones(1, 1, *shape).double(), torch.ones(1, 1, 3, 3).double(), padding=1)
    plain = functional.conv2d(features, layer.weight, padding=1)
    torch.testing.assert_close(layer(features), plain * 9 / taps + layer.bias[:, None, None], **EXACT)


def test_residual_block_averages_two_powers():
    block = ResidualBlock(6, 6, kernel_size=1).double()
    features = field(1, 6, 4, 4)
    torch.testing.assert_close(block(features), (features + block.residual(features)) / math.sqrt(2), **EXACT)
    assert isinstance(ResidualBlock(6, 3, kernel_size=3).shortcut, nn.Conv2d)


def test_noise_begins_silent_and_is_one_field_for_all_channels():
    injection = NoiseInjection().double()
    features = field(2, 5, 8, 8)
    torch.testing.assert_close(injection(features), features, **EXACT)
    nn.init.constant_(injection.strength, 2.0)
    added = injection(features) - features
    torch.testing.assert_close(added, added[:, :1].expand_as(added), **EXACT)
    assert added[:, 0].std().item() == pytest.approx(2.0, rel=0.25)
    assert (injection(features) - features - added).abs().max() > 0


def test_tfill_starts_as_published():
    network = TFillGenerator(width=16, layers=1, heads=8, feed_forward=512)
    for part in (network.encoder, network.decoder):
        for layer in part.modules():
            if isinstance(layer, nn.Conv2d | nn.Linear):
                assert layer.bias.abs().max() == 0
                if layer.weight.numel() > 10_000:
                    fan_in = layer.weight[0].numel()
                    assert layer.weight.std().item() == pytest.approx(math.sqrt(2 / fan_in), rel=0.05)
    transformer = network.transformer
    assert transformer.row_position.min() >= 0
    assert transformer.row_position.mean().item() == pytest.approx(0.5, abs=0.02)
    assert transformer.layers[0].query.weight.abs().max() <= math.sqrt(6 / 512)  # Glorot, 256 in and out
    assert transformer.layers[0].joined.bias.abs().max() > 0  # torch's own start


@pytest.mark.parametrize(
    ("size", "width", "total"), [(256, 32, 19_048_993), (384, 32, 24_291_873), (256, 64, 24_001_089)]
)
def test_discriminator_has_the_published_sizes(size, width, total):
    with torch.device("meta"):
        network = StyleGAN2Discriminator(size, width=width)
        assert network(torch.zeros(2, 3, size, size)).shape == (2, 1)
    assert count(network) == total


@pytest.mark.parametrize("batch", [1, 2, 3, 4, 8, 12])
def test_minibatch_deviation_is_that_of_its_group(batch):
    features = field(batch, 3, 4, 5)
    group = {1: 1, 2: 2, 3: 3}.get(batch, 4)
    stride = batch // group
    got = minibatch_deviation(features)
    assert got.shape == (batch, 1, 4, 5)
    for image in range(batch):
        members = features[image % stride :: stride]
        expected = (members.var(dim=0, correction=0) + 1e-8).sqrt().mean()
        torch.testing.assert_close(got[image], expected.expand(1, 4, 5), **EXACT)


def test_minibatch_deviation_of_an_odd_batch_is_inert():
    inert = torch.full((5, 1, 4, 4), 1e-4, dtype=torch.float64)
    torch.testing.assert_close(minibatch_deviation(field(5, 3, 4, 4)), inert)


def test_blur_keeps_a_constant_and_halves_as_blur_then_pick():
    ones = torch.ones(1, 2, 8, 8)
    torch.testing.assert_close(Blur(padding=2)(ones)[..., 2:-2, 2:-2], torch.ones(1, 2, 5, 5))
    features = field(2, 3, 10, 10)
    torch.testing.assert_close(
        Blur(padding=1, stride=2)(features), Blur(padding=1)(features)[..., ::2, ::2], atol=1e-7, rtol=1e-7
    )
    taps = torch.tensor([1.0, 3.0, 3.0, 1.0]).double() / 8
    along_x = functional.conv2d(features[:, :1], taps.reshape(1, 1, 1, 4), padding=(0, 2))
    torch.testing.assert_close(
        Blur(padding=2)(features)[:, :1], functional.conv2d(along_x, taps.reshape(1, 1, 4, 1), padding=(2, 0))
    )


def test_equalised_layers_keep_the_variance():
    layer = EqualisedConvolution(64, 64, kernel_size=3, padding=1)
    assert layer.weight.std().item() == pytest.approx(1.0, rel=0.02)
    assert layer(field(2, 64, 12, 12, dtype=torch.float32))[..., 1:-1, 1:-1].std().item() == pytest.approx(1, rel=0.05)
    assert HalvingBlock(4, 6)(torch.zeros(1, 4, 6, 10)).shape == (1, 6, 3, 5)


def test_small_discriminator_learns_to_tell_bright_from_dark():
    network = StyleGAN2Discriminator(16, image_channels=1, coarse_channels=16)
    optimizer = torch.optim.Adam(network.parameters(), lr=4e-3, betas=(0.5, 0.9))
    real, fake = (shift + 0.2 * field(8, 1, 16, 16, dtype=torch.float32) for shift in (0.5, -0.5))
    for _ in range(20):
        loss = functional.softplus(-network(real)).mean() + functional.softplus(network(fake)).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss.item() < math.log(2)  # half of what guessing gets


def test_pix2pix_and_cyclegan_have_the_published_sizes():
    down = [(3, 64), (64, 128), (128, 256), (256, 512), *[(512, 512)] * 4]
    up = [(512, 512), *[(1024, 512)] * 3, (1024, 256), (512, 128), (256, 64)]
    scales = 2 * (sum(after for _, after in down[1:-1]) + sum(after for _, after in up))
    unet = 16 * sum(a * b for a, b in down + up) + scales + 16 * 128 * 3 + 3
    patches = 16 * (6 * 64 + 64 * 128 + 128 * 256 + 256 * 512 + 512) + 64 + 1 + 2 * (128 + 256 + 512)
    alone = 16 * (3 * 64 + 64 * 128 + 128 * 256 + 256 * 512 + 512) + 64 + 1 + 128 + 256 + 512
    outer = 49 * 3 * 64 * 2 + 64 + 3
    resnet = outer + 2 * 9 * (64 * 128 + 128 * 256) + 128 + 256 + 128 + 64 + 18 * (9 * 256 * 256 + 256)
    with torch.device("meta"):
        assert count(Pix2PixUNet()) == unet == 54_413_955
        assert count(PatchDiscriminator()) == patches == 2_768_705
        assert count(PatchDiscriminator(3, normalization="instance")) == alone == 2_764_737
        assert count(ResNetGenerator()) == resnet == 11_378_179
        assert Pix2PixUNet()(torch.zeros(2, 3, 256, 512)).shape == (2, 3, 256, 512)
        assert Pix2PixUNet(levels=7)(torch.zeros(1, 3, 384, 384)).shape == (1, 3, 384, 384)
        assert PatchDiscriminator()(torch.zeros(1, 6, 256, 256)).shape == (1, 1, 30, 30)
        assert ResNetGenerator()(torch.zeros(1, 3, 384, 256)).shape == (1, 3, 384, 256)


def test_a_logit_of_the_patch_discriminator_sees_70_pixels():
    network = PatchDiscriminator(1, width=4).double().eval()
    image = field(1, 1, 128, 128).requires_grad_()
    network(image)[0, 0, 7, 7].backward()
    seen = image.grad[0, 0].abs() > 0
    rows, columns = seen.any(dim=1).nonzero(), seen.any(dim=0).nonzero()
    assert rows.max() - rows.min() + 1 == columns.max() - columns.min() + 1 == 70


def test_pix2pix_draws_noise_by_dropout_in_training_only():
    network = Pix2PixUNet(1, levels=8, width=2)
    dropouts = [[isinstance(layer, nn.Dropout) for layer in up].count(True) for up in network.ups]
    assert dropouts == [0, 1, 1, 1, 0, 0, 0]
    image = field(2, 1, 256, 256, dtype=torch.float32)
    assert (network(image) - network(image)).abs().max() > 0
    network.eval()
    torch.testing.assert_close(network(image), network(image), atol=0, rtol=0)


def test_image_pool_fills_then_swaps_and_loses_nothing():
    pool = ImagePool(4)
    shown = torch.arange(40.0).reshape(40, 1, 1, 1)
    generator = torch.Generator().manual_seed(1)
    returned = torch.cat([pool(batch, generator=generator) for batch in shown.split(4)])
    torch.testing.assert_close(returned[:4], shown[:4])
    swapped = (returned[4:] != shown[4:]).sum().item()
    assert 9 <= swapped <= 27  # of 36 with probability 1/2
    old = returned[4:][returned[4:] != shown[4:]].flatten().tolist()
    held = torch.stack(pool.held).flatten().tolist()
    assert len(set(old)) == len(old)
    assert set(old) <= set(shown.flatten().tolist())
    assert len(set(held)) == 4
    assert not set(held) & set(old)


def test_image_pool_goes_on_from_its_state_dict():
    pool, resumed = ImagePool(3), ImagePool(3)
    pool(field(5, 2, 4, 4))
    file = io.BytesIO()
    torch.save(nn.ModuleDict({"pool": pool}).state_dict(), file)
    file.seek(0)
    nn.ModuleDict({"pool": resumed}).load_state_dict(torch.load(file, weights_only=True))
    batch = field(6, 2, 4, 4, seed=1).requires_grad_()
    ways = [each(batch, generator=torch.Generator().manual_seed(2)) for each in (pool, resumed)]
    torch.testing.assert_close(*ways, atol=0, rtol=0)
    assert not ways[0].requires_grad
    resumed.load_state_dict(ImagePool(3).state_dict())
    assert resumed.held == []
    torch.testing.assert_close(ImagePool(0)(batch), batch.detach())


@pytest.mark.parametrize(
    ("build", "named"),
    [
        (lambda: TFillGenerator(width=3, heads=16), "heads"),
        (lambda: TFillGenerator(layers=-1), "layers"),
        (lambda: TFillGenerator(width=0), "width"),
        (lambda: TFillGenerator(**SMALL)(torch.zeros(1, 1, 32, 32)), "image"),
        (lambda: TFillGenerator(**SMALL)(torch.zeros(1, 3, 40, 32)), "image"),
        (lambda: TFillGenerator(**SMALL)(torch.zeros(1, 3, 528, 16)), "image"),
        (lambda: StyleGAN2Discriminator(4), "image_size"),
        (lambda: StyleGAN2Discriminator(300), "image_size"),
        (lambda: StyleGAN2Discriminator(1024, width=2), "width"),
        (lambda: StyleGAN2Discriminator(16)(torch.zeros(1, 3, 16, 32)), "image"),
        (lambda: Pix2PixUNet(levels=4), "levels"),
        (lambda: Pix2PixUNet(levels=5, width=2)(torch.zeros(1, 3, 48, 32)), "image"),
        (lambda: PatchDiscriminator(normalization="layer"), "normalization"),
        (lambda: PatchDiscriminator()(torch.zeros(1, 3, 64, 64)), "image"),
        (lambda: ResNetGenerator(blocks=-1), "blocks"),
        (lambda: ResNetGenerator(width=2)(torch.zeros(1, 3, 34, 32)), "image"),
        (lambda: ImagePool(-1), "capacity"),
    ],
)
def test_what_a_network_cannot_be_or_take_is_named(build, named):
    with torch.device("meta"), pytest.raises(ValueError, match=f"^{named} must"):
        build()
