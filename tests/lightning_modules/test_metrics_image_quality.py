"""L1, PSNR and SSIM against scikit-image; LPIPS with weights that the test writes; what is absent is left out."""

import warnings

import lpips
import numpy as np
import pytest
import torch
import torchvision
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from lightning_modules.metrics import image_quality
from lightning_modules.metrics.image_quality import (
    PerceptualDistance,
    frechet_distance,
    l1,
    psnr_db,
    ssim,
)


def images(count=3, channels=1, size=24, seed=0):
    generator = torch.Generator().manual_seed(seed)
    real = torch.rand(count, channels, size, size, generator=generator)
    noise = torch.randn(real.shape, generator=generator) * torch.linspace(0.02, 0.2, count)[:, None, None, None]
    return (real + noise).clamp(0, 1), real


def test_psnr_and_ssim_are_those_of_scikit_image():
    generated, real = images(channels=3)
    for i in range(3):
        one, other = (part[i].permute(1, 2, 0).double().numpy() for part in (generated, real))
        assert psnr_db(generated, real)[i].item() == pytest.approx(
            peak_signal_noise_ratio(other, one, data_range=1), rel=1e-5
        )
        reference = structural_similarity(other, one, win_size=11, data_range=1, channel_axis=-1)
        assert ssim(generated, real)[i].item() == pytest.approx(reference, rel=1e-4)
        assert l1(generated, real)[i].item() == pytest.approx(np.abs(one - other).mean(), rel=1e-5)


def test_an_image_is_like_itself_and_a_tiny_one_has_no_ssim():
    _, real = images()
    torch.testing.assert_close(ssim(real, real), torch.ones(3))
    assert l1(real, real).max() == 0
    assert psnr_db(real, real).isposinf().all()
    assert ssim(real[..., :10], real[..., :10]).isnan().all()


@pytest.fixture(scope="module")
def alexnet_file(tmp_path_factory):
    """A state dict as torchvision writes it, of random weights."""
    path = tmp_path_factory.mktemp("weights") / "alexnet.pth"
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        # its dense layers are of no use here and hold 200 MB
        state = {f"features.{k}": v for k, v in torchvision.models.alexnet(weights=None).features.state_dict().items()}
    torch.save(state, path)
    return path


@pytest.mark.slow
def test_lpips_with_a_file_is_the_packages_own_with_the_same_weights(alexnet_file):
    ours = PerceptualDistance("alex", str(alexnet_file))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = lpips.LPIPS(net="alex", pnet_rand=True, verbose=False)
    stored = torch.load(alexnet_file, weights_only=True)
    layers = dict(theirs.net.named_parameters())
    for name, parameter in layers.items():
        parameter.data.copy_(stored["features." + name.partition(".")[2]])
    generated, real = (2 * part - 1 for part in images(size=64, channels=1))
    expected = theirs(generated.repeat(1, 3, 1, 1), real.repeat(1, 3, 1, 1)).flatten()
    torch.testing.assert_close(ours(generated, real), expected)
    assert ours(real, real).abs().max() == 0
    assert (expected > 0).all()


@pytest.mark.slow
def test_lpips_is_differentiable_fixed_and_no_draw_of_the_run(alexnet_file):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        expected = torch.rand(())
        torch.manual_seed(5)
        distance = PerceptualDistance("alex", str(alexnet_file))
        assert torch.rand(()) == expected
    assert not any(parameter.requires_grad for parameter in distance.parameters())
    assert not any(module.training for module in distance.train().modules())
    generated = torch.zeros(1, 1, 64, 64, requires_grad=True)
    distance(generated, torch.randn(1, 1, 64, 64).clamp(-1, 1)).sum().backward()
    assert generated.grad.abs().max() > 0


def test_a_wrong_file_is_named(alexnet_file, tmp_path):
    with pytest.raises(ValueError, match=r"weights .*alexnet\.pth is no state dict of this network: features\.0"):
        PerceptualDistance("vgg", str(alexnet_file))
    (tmp_path / "broken.pth").write_bytes(b"nothing")
    with pytest.raises(ValueError, match=r"weights .*broken\.pth cannot be read as a state dict"):
        PerceptualDistance("alex", str(tmp_path / "broken.pth"))
    with pytest.raises(FileNotFoundError, match=r"there is no file .*absent\.pth; give the path of alexnet"):
        PerceptualDistance("alex", str(tmp_path / "absent.pth"))
    with pytest.raises(ValueError, match="trunk must be one of vgg, alex, got 'resnet'"):
        PerceptualDistance("resnet", str(alexnet_file))


def test_a_wrong_inception_file_is_named_before_it_is_run(alexnet_file, tmp_path, monkeypatch):
    monkeypatch.setattr(image_quality.importlib.util, "find_spec", lambda name: object())
    with pytest.raises(ValueError, match=r"weights .*alexnet\.pth is no state dict of this network: Conv2d_1a_3x3"):
        frechet_distance(str(alexnet_file))

    class Trap:
        def __reduce__(self):
            return (tmp_path / "sprung").touch, ()

    torch.save({"Conv2d_1a_3x3.conv.weight": Trap()}, tmp_path / "trap.pth")
    with pytest.raises(ValueError, match=r"weights .*trap\.pth cannot be read as a state dict"):
        frechet_distance(str(tmp_path / "trap.pth"))
    assert not (tmp_path / "sprung").exists()


@pytest.mark.slow
def test_the_cache_is_torchs_own_folder(alexnet_file, tmp_path, monkeypatch):
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    with pytest.raises(FileNotFoundError, match="checkpoints"):
        PerceptualDistance("alex", "cache")
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / image_quality.TRUNKS["alex"]).write_bytes(alexnet_file.read_bytes())
    assert PerceptualDistance("alex", "cache").distance.pnet_type == "alex"


def test_what_fid_lacks_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(image_quality.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(FileNotFoundError, match=r"^weights: the package torch-fidelity is not installed"):
        frechet_distance("cache")
    monkeypatch.setattr(image_quality.importlib.util, "find_spec", lambda name: object())
    with pytest.raises(FileNotFoundError, match=r"^weights: there is no file"):
        frechet_distance(str(tmp_path / "absent.pth"))


def test_the_state_dict_of_a_sibling_is_named(tmp_path):
    first = {"features.0.weight": torch.zeros(64, 3, 3, 3)}  # VGG-11 begins like VGG-16
    torch.save(first, tmp_path / "vgg11.pth")
    with pytest.raises(ValueError, match=r"^weights .*vgg11\.pth is no state dict of vgg16"):
        PerceptualDistance("vgg", str(tmp_path / "vgg11.pth"))


@pytest.mark.slow
def test_lpips_is_in_single_precision_whatever_the_training_is_in(alexnet_file):
    distance = PerceptualDistance("alex", str(alexnet_file))
    generated, real = (2 * part - 1 for part in images(size=64, channels=1))
    expected = distance(generated, real)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(distance(generated, real), expected)
