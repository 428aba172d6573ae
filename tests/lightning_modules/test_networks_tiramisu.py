"""The Bayesian Tiramisu: published size, dense blocks against plain concatenation, dropout as draws of the network."""

import copy
import math
import pickle

import pytest
import torch
from torch import nn
from torch.nn import functional

from lightning_modules.metrics.lognormal import epistemic_variance
from lightning_modules.networks.dense_block import DenseBlock
from lightning_modules.networks.tiramisu import BayesianTiramisu

PUBLISHED = 4_324_946  # printed by the authors' train_model.ipynb
SMALL = {"blocks": 2, "layers": 2, "growth": 4, "initial_channels": 6}


def noise(*shape, seed=0, dtype=torch.float32):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def count(network):
    return sum(parameter.numel() for parameter in network.parameters() if parameter.requires_grad)


@pytest.fixture(autouse=True)
def _same_start():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        yield


def shaken(module):
    """The module with its normalisations and heads away from their start."""
    for layer in module.modules():
        if isinstance(layer, nn.BatchNorm2d):
            for tensor in (layer.weight, layer.bias, layer.running_mean):
                nn.init.normal_(tensor)
            nn.init.uniform_(layer.running_var, 0.5, 2)
        elif isinstance(layer, nn.Conv2d) and layer.kernel_size == (1, 1) and layer.out_channels == 1:
            nn.init.normal_(layer.weight, std=0.1)
    return module


def test_the_published_size_layer_by_layer():
    def dense(channels):
        return sum(2 * c + 9 * 16 * c for c in range(channels, channels + 80, 16))

    down = [48, 128, 208, 288, 368, 448]
    skips = [channels + 80 for channels in down]
    by_hand = 9 * 48 + 2 * 48
    by_hand += sum(dense(channels) for channels in down) + sum(2 * c + c * c for c in skips)
    by_hand += dense(528) + sum(dense(80 + c) for c in reversed(skips)) + 2 * (288 + 1)
    network = BayesianTiramisu()
    assert count(network) == by_hand == PUBLISHED
    assert network.out_channels == 288
    assert sum(isinstance(layer, nn.Conv2d) for layer in network.modules()) == 74
    assert sum(weight.numel() for weight in network.penalised_weights()) == 432 + 757_504
    assert {layer.p for layer in network.modules() if isinstance(layer, nn.Dropout)} == {0.2}
    norms = [layer for layer in network.modules() if isinstance(layer, nn.BatchNorm2d)]
    assert {(layer.eps, layer.momentum) for layer in norms} == {(1.1e-5, 0.01)}


def test_it_starts_glorot_normal_with_sigma_1_whatever_the_image():
    network = BayesianTiramisu().eval()
    for layer in network.modules():
        if isinstance(layer, nn.Conv2d) and layer.weight.numel() > 20_000:
            fans = (layer.in_channels + layer.out_channels) * math.prod(layer.kernel_size)
            assert layer.weight.std().item() == pytest.approx(math.sqrt(2 / fans), rel=0.03)
    prediction = network(10 * noise(1, 1, 64, 128))
    assert prediction.shape == (1, 2, 64, 128)
    assert network.features(noise(1, 1, 64, 64)).shape == (1, 288, 64, 64)
    torch.testing.assert_close(prediction[:, 1], torch.ones(1, 64, 128), atol=1e-6, rtol=0)
    assert prediction[:, 0].std() > 0.01


def concatenated(block, *sources):
    maps = torch.cat(sources, dim=1)
    for layer in block.layers:
        maps = torch.cat((maps, layer(maps)), dim=1)
    return maps


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_a_lean_block_equals_concatenations_forward_backward_and_in_its_statistics(training, memory_format):
    block = shaken(DenseBlock(7, layers=3, growth=4, dropout_rate=0.0)).double().train(training)
    block.to(memory_format=memory_format)
    plain = copy.deepcopy(block)
    sources = [noise(2, k, 6, 5, seed=k, dtype=torch.float64).to(memory_format=memory_format) for k in (3, 4)]
    lean_in = [source.clone().requires_grad_() for source in sources]
    plain_in = [source.clone().requires_grad_() for source in sources]
    lean, expected = block(*lean_in), concatenated(plain, *plain_in)
    assert lean.is_contiguous(memory_format=memory_format)
    torch.testing.assert_close(lean, expected, atol=1e-13, rtol=1e-12)
    weights = noise(*lean.shape, seed=9, dtype=torch.float64)
    lean.backward(weights)
    expected.backward(weights)
    for one, other in zip([*lean_in, *block.parameters()], [*plain_in, *plain.parameters()], strict=True):
        torch.testing.assert_close(one.grad, other.grad, atol=1e-12, rtol=1e-10)
    for one, other in zip(block.state_dict().values(), plain.state_dict().values(), strict=True):
        torch.testing.assert_close(one, other, atol=1e-14, rtol=1e-12)


def test_gradients_through_dropout_are_right():
    block = shaken(DenseBlock(3, layers=2, growth=2, dropout_rate=0.4)).double().train()

    def run(source, kernel):
        torch.manual_seed(3)
        values = {"layers.0.conv.weight": kernel}
        return torch.func.functional_call(block, values, (source,))

    source = noise(2, 3, 3, 4, dtype=torch.float64).requires_grad_()
    kernel = block.layers[0].conv.weight.detach().clone().requires_grad_()
    assert (run(source, kernel)[:, 3:] == 0).double().mean().item() == pytest.approx(0.4, abs=0.15)
    assert torch.autograd.gradcheck(run, (source, kernel))


def test_dropout_keeps_the_mean_and_drops_single_values():
    block = shaken(DenseBlock(4, layers=1, growth=8, dropout_rate=0.2)).eval()
    source = noise(2, 4, 64, 64)
    without = block(source)[:, 4:]
    block.layers[0].dropout.train()
    ratio = block(source)[:, 4:] / without
    kept = ratio != 0
    torch.testing.assert_close(ratio[kept], torch.full_like(ratio[kept], 1.25))
    assert kept.float().mean().item() == pytest.approx(0.8, abs=4 * math.sqrt(0.16 / kept.numel()))


def saved_bytes(run):
    storages = {}

    def pack(tensor):
        storages[tensor.untyped_storage().data_ptr()] = (tensor.untyped_storage().nbytes(), tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        run()
    return sum(size for size, _ in storages.values())


def test_a_block_keeps_its_output_and_little_else_for_training():
    block = DenseBlock(208, layers=5, growth=16, dropout_rate=0.2)
    source = noise(1, 208, 32, 32).requires_grad_()
    output = 288 * 32 * 32 * 4
    kernels = sum(layer.conv.weight.nbytes for layer in block.layers)
    lean = saved_bytes(lambda: block(source))
    assert lean < 1.1 * (output + kernels)
    assert saved_bytes(lambda: concatenated(block, source)) > 5 * lean


@pytest.mark.parametrize("training", [True, False])
def test_the_small_variant_learns_in_both_modes(training):
    network = BayesianTiramisu(**SMALL).train(training)
    image = noise(2, 1, 16, 16)
    optimizer = torch.optim.Adam(network.parameters(), lr=0.01)
    losses = []
    for _ in range(30):
        loss = functional.mse_loss(network(image)[:, :1], image)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert sum(losses[-5:]) < 0.5 * sum(losses[:5])


def test_sampling_leaves_batch_normalisation_alone_and_restores_every_mode():
    network = shaken(BayesianTiramisu(**SMALL)).train()
    network.transitions[0].eval()
    network.down[0].layers[0].dropout.eval()
    modes = {name: module.training for name, module in network.named_modules()}
    before = copy.deepcopy(network.state_dict())
    with network.sampling():
        assert all(m.training is isinstance(m, nn.Dropout) for m in network.modules())
    draws = network.sample(noise(2, 1, 8, 12), draws=3)
    assert draws.shape == (3, 2, 2, 8, 12)
    assert not draws.requires_grad
    for name, tensor in network.state_dict().items():
        assert torch.equal(tensor, before[name]), name
    assert {name: module.training for name, module in network.named_modules()} == modes

    with pytest.raises(KeyboardInterrupt), network.sampling():
        raise KeyboardInterrupt
    assert {name: module.training for name, module in network.named_modules()} == modes


def test_draws_differ_with_dropout_only_and_follow_the_seed():
    image = noise(1, 1, 8, 8)
    network = shaken(BayesianTiramisu(**SMALL)).eval()
    torch.manual_seed(5)
    draws = network.sample(image, draws=4)
    assert epistemic_variance(draws[:, :, 0], draws[:, :, 1].square()).min() > 0
    torch.manual_seed(5)
    assert torch.equal(network.sample(image, draws=4), draws)
    assert torch.equal(network(image), network(image))
    certain = shaken(BayesianTiramisu(**SMALL, dropout_rate=0.0))
    equal = certain.sample(image, draws=3)
    assert epistemic_variance(equal[:, :, 0], equal[:, :, 1].square()).max() == 0


def test_with_generators_an_images_draw_is_its_own():
    network = shaken(BayesianTiramisu(**SMALL)).double().eval()
    images = noise(3, 1, 8, 8, dtype=torch.float64)

    def draw(batch, *seeds):
        with torch.no_grad(), network.sampling([torch.Generator().manual_seed(seed) for seed in seeds]):
            return network(batch)

    together = draw(images, 7, 8, 9)
    torch.testing.assert_close(draw(images[1:2], 8), together[1:2])
    torch.testing.assert_close(draw(images.flip(0), 9, 8, 7), together.flip(0))
    assert (draw(images, 7, 8, 10)[2] - together[2]).abs().max() > 1e-3
    with pytest.raises(ValueError, match="generators must be one per image, got 2 for 3"):
        draw(images, 7, 8)
    block = DenseBlock(4, layers=1, growth=8, dropout_rate=0.2).eval()
    source = noise(1, 4, 64, 64)
    without = block(source)[:, 4:]
    block.layers[0].dropout.train()
    block.generators = [torch.Generator().manual_seed(1)]
    ratio = block(source)[:, 4:] / without
    kept = ratio != 0
    torch.testing.assert_close(ratio[kept], torch.full_like(ratio[kept], 1.25))
    assert kept.float().mean().item() == pytest.approx(0.8, abs=4 * math.sqrt(0.16 / kept.numel()))


def test_a_pass_without_dropout_does_not_depend_on_what_else_is_in_the_batch():
    network = shaken(BayesianTiramisu(**SMALL)).double().eval()
    images = noise(3, 1, 8, 8, dtype=torch.float64)
    torch.testing.assert_close(network(images)[:1], network(images[:1]))


def test_training_moves_the_running_statistics_of_every_normalisation_once():
    network = BayesianTiramisu(**SMALL).train()
    network(noise(2, 1, 8, 8))
    norms = [layer for layer in network.modules() if isinstance(layer, nn.BatchNorm2d)]
    assert all(layer.num_batches_tracked == 1 for layer in norms)
    assert all((layer.running_mean != 0).all() for layer in norms)


def test_bfloat16_and_channels_last_are_taken_and_answered_in_float32():
    network = shaken(BayesianTiramisu(**SMALL)).eval()
    image = noise(2, 1, 16, 16)
    expected = network(image)
    torch.testing.assert_close(network(image.to(memory_format=torch.channels_last)), expected)
    assert network.features(image).is_contiguous(memory_format=torch.channels_last)
    with torch.autocast("cpu", torch.bfloat16):
        prediction = network(image)
        assert network.features(image).dtype == torch.bfloat16
    assert prediction.dtype == torch.float32
    torch.testing.assert_close(prediction, expected, atol=0.05 * expected.std().item(), rtol=0.05)
    network.train()
    with torch.autocast("cpu", torch.bfloat16):
        loss = network(image).square().mean()
    loss.backward()
    assert all(p.grad.isfinite().all() and p.grad.dtype == torch.float32 for p in network.parameters())
    whole = copy.deepcopy(network).eval().bfloat16()
    assert whole(image.bfloat16()).dtype == torch.bfloat16


@pytest.mark.slow
def test_the_compiler_takes_it_whole_and_agrees():
    smaller = {"blocks": 1, "layers": 2, "growth": 2, "initial_channels": 3}
    network = shaken(BayesianTiramisu(**smaller, dropout_rate=0.0)).double().train()
    image = noise(2, 1, 4, 4, dtype=torch.float64)
    other = copy.deepcopy(network)
    compiled = torch.compile(other, backend="aot_eager", fullgraph=True)
    for run in (network, compiled):
        run(image).square().mean().backward()
    for one, two in zip(network.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(one.grad, two.grad)
    torch.testing.assert_close(network.state_dict(), other.state_dict())


def test_it_travels_through_copies_pickles_and_checkpoints():
    network = shaken(BayesianTiramisu(**SMALL)).eval()
    image = noise(1, 1, 8, 8)
    fresh = BayesianTiramisu(**SMALL).eval()
    fresh.load_state_dict(network.state_dict())
    for other in (copy.deepcopy(network), pickle.loads(pickle.dumps(network)), fresh):
        assert torch.equal(other(image), network(image))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("in_channels", 0),
        ("blocks", 0),
        ("layers", 0),
        ("growth", 0),
        ("initial_channels", 0),
        ("dropout_rate", 1.0),
        ("dropout_rate", -0.1),
        ("dropout_rate", math.nan),
    ],
)
def test_bad_arguments_are_refused_by_name(name, value):
    with pytest.raises(ValueError, match=f"^{name} must"):
        BayesianTiramisu(**{**SMALL, name: value})


def test_bad_images_are_refused_in_words():
    network = BayesianTiramisu(**SMALL, in_channels=2)
    assert network(noise(1, 2, 8, 8)).shape == (1, 2, 8, 8)
    with pytest.raises(ValueError, match=r"image must have shape \(batch, 2, y, x\), got \(1, 1, 8, 8\)"):
        network(noise(1, 1, 8, 8))
    with pytest.raises(ValueError, match="divisible by 4, got"):
        network(noise(1, 2, 8, 10))
    with pytest.raises(ValueError, match="image must be larger, or the batch"):
        network(noise(1, 2, 4, 4))
    assert network.eval()(noise(1, 2, 4, 4)).shape == (1, 2, 4, 4)
    with pytest.raises(ValueError, match="draws must be at least 1"):
        network.sample(noise(1, 2, 4, 4), draws=0)
