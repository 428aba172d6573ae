"""How alike a generated and a real image are: L1, PSNR and SSIM, and with pretrained networks LPIPS and FID.

TFill's evaluation (evaluations/evaluation.py), the metrics of fig. 2e in Vasudevan, Zheng et al., PLOS ONE 0271056
(2022): images in [0, 1], mean L1, PSNR against a range of 1, SSIM of Wang et al. (2004) with a uniform window of 11 as
scikit-image computes it, LPIPS (Zhang et al., CVPR 2018) on AlexNet, FID (Heusel et al., 2017). As a loss, LPIPS is on
VGG-16.

The two networks' weights are never downloaded. A trunk is torchvision's state dict, of the path that is given or, for
"cache", of torch's own cache folder; LPIPS' linear layers come with its package. FID needs the package torch-fidelity
and its Inception weights.

Neither network belongs to a module's checkpoint: keep them where `nn.Module` does not register them.

Deviations: an image of fewer than 11 pixels along y or x has no SSIM, NaN; identical ones have a PSNR of infinity.

"""

from __future__ import annotations

import importlib.util
import warnings
from pathlib import Path
from typing import Literal

import lpips
import torch
from torch import Tensor, nn
from torch.nn import functional
from torchmetrics import Metric

WINDOW_PX = 11
SSIM_K1, SSIM_K2 = 0.01, 0.03
TRUNKS = {"vgg": "vgg16-397923af.pth", "alex": "alexnet-owt-7be5be79.pth"}
"""Torchvision's files of ImageNet weights, as they are called in torch's cache folder."""
FIRST_LAYERS = {
    "vgg": ("features.0.weight", (64, 3, 3, 3)),
    "alex": ("features.0.weight", (64, 3, 11, 11)),
    "inception": ("Conv2d_1a_3x3.conv.weight", (32, 3, 3, 3)),
}
"""By which the files are known."""
INCEPTION = "weights-inception-2015-12-05-6726825d.pth"
"""torch-fidelity's file, likewise."""
CACHE = "cache"


def l1(generated: Tensor, real: Tensor) -> Tensor:
    """Mean absolute difference of every image, (batch, channels, y, x) -> (batch,), in the images' unit."""
    return (generated - real).abs().mean(dim=(1, 2, 3))


def psnr_db(generated: Tensor, real: Tensor) -> Tensor:
    """Peak signal-to-noise ratio of every image in [0, 1], (batch, channels, y, x) -> (batch,), dB.

    >>> psnr_db(torch.zeros(1, 1, 4, 4), torch.full((1, 1, 4, 4), 0.1)).round().item()
    20.0

    """
    return -10 * (generated - real).square().mean(dim=(1, 2, 3)).log10()


def ssim(generated: Tensor, real: Tensor) -> Tensor:
    """Structural similarity of every image in [0, 1], (batch, channels, y, x) -> (batch,).

    Mean over channels and over the pixels whose window lies inside the image; variances with the divisor n - 1.
    """
    if min(generated.shape[-2:]) < WINDOW_PX:
        return torch.full_like(generated[:, 0, 0, 0], torch.nan)
    one, other = generated.double(), real.double()
    means = [_window_mean(part) for part in (one, other, one * one, other * other, one * other)]
    unbiased = WINDOW_PX**2 / (WINDOW_PX**2 - 1)
    variance_one = unbiased * (means[2] - means[0] ** 2)
    variance_other = unbiased * (means[3] - means[1] ** 2)
    covariance = unbiased * (means[4] - means[0] * means[1])
    c1, c2 = SSIM_K1**2, SSIM_K2**2
    similarity = ((2 * means[0] * means[1] + c1) * (2 * covariance + c2)) / (
        (means[0] ** 2 + means[1] ** 2 + c1) * (variance_one + variance_other + c2)
    )
    return similarity.mean(dim=(1, 2, 3)).to(generated.dtype)


class PerceptualDistance(nn.Module):
    """LPIPS between images, its trunk's weights from a file.

    Args:
        trunk: "vgg" (the loss) or "alex" (the metric).
        weights: path of torchvision's state dict of VGG-16 or AlexNet, or "cache".

    Raises:
        FileNotFoundError: the file is not there.
        ValueError: an unknown trunk, or a file that is not this trunk's state dict; it begins with `weights`.

    """

    def __init__(self, trunk: Literal["vgg", "alex"], weights: str) -> None:
        if trunk not in TRUNKS:
            raise ValueError(f"trunk must be one of {', '.join(TRUNKS)}, got {trunk!r}")
        stored = _stored_weights(weights_file(weights, TRUNKS[trunk]), *FIRST_LAYERS[trunk])
        super().__init__()
        # torch's random stream must not depend on whether there is a trunk
        with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torchvision's of an argument that lpips still uses
            self.distance = lpips.LPIPS(net=trunk, pnet_rand=True, verbose=False)
        # lpips calls torchvision's `features.5.weight` `slice2.5.weight`
        names = {name: "features." + name.partition(".")[2] for name in self.distance.net.state_dict()}
        try:
            self.distance.net.load_state_dict({name: stored[theirs] for name, theirs in names.items()})
        except (KeyError, RuntimeError):
            raise ValueError(f"weights {weights} is no state dict of {TRUNKS[trunk].partition('-')[0]}") from None
        self.requires_grad_(False)
        self.eval()

    def train(self, mode: bool = True) -> PerceptualDistance:
        """Stay in evaluation: a dropout in the linear layers would change the distance."""
        return super().train(False)

    def forward(self, generated: Tensor, real: Tensor) -> Tensor:
        """Images (batch, 1 or 3, y, x) in [-1, 1] -> distances (batch,), differentiable."""
        pair = [image.float().expand(-1, 3, -1, -1) for image in (generated, real)]
        with torch.autocast(generated.device.type, enabled=False):  # small differences of large numbers
            return self.distance(*pair).flatten()


def weights_file(weights: str, cached_name: str) -> Path:
    """The file that `weights`, a path or "cache", stands for; FileNotFoundError where there is none."""
    path = Path(torch.hub.get_dir()) / "checkpoints" / cached_name if weights == CACHE else Path(weights).expanduser()
    if not path.is_file():
        raise FileNotFoundError(f"weights: there is no file {path}; give the path of {cached_name}, or null")
    return path


def frechet_distance(weights: str) -> Metric:
    """FID over images in [0, 1].

    Args:
        weights: path of torch-fidelity's Inception, or "cache".

    Raises:
        FileNotFoundError: the file or the package torch-fidelity is not there; it begins with `weights`.
        ValueError: the file holds something else; it begins with `weights`.

    """
    if importlib.util.find_spec("torch_fidelity") is None:
        raise FileNotFoundError("weights: the package torch-fidelity is not installed (extra fid), or give null")
    path = weights_file(weights, INCEPTION)
    _stored_weights(path, *FIRST_LAYERS["inception"])  # torch-fidelity would run what a file that is no such tells it
    from torchmetrics.image.fid import FrechetInceptionDistance

    return FrechetInceptionDistance(normalize=True, feature_extractor_weights_path=str(path))


def _window_mean(images: Tensor) -> Tensor:
    return functional.avg_pool2d(images, WINDOW_PX, stride=1)


def _stored_weights(path: Path, name: str, shape: tuple[int, ...]) -> dict[str, Tensor]:
    """The state dict of a network, known by its first layer; it is checked before the network is built."""
    try:
        stored = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise ValueError(f"weights {path} cannot be read as a state dict: {type(error).__name__}") from None
    first = stored.get(name) if isinstance(stored, dict) else None
    if not isinstance(first, Tensor) or tuple(first.shape) != shape:
        raise ValueError(f"weights {path} is no state dict of this network: {name} must be {shape}")
    return stored
