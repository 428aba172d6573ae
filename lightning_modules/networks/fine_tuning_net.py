"""Fine-tuning network: the backbone of a published image classifier under the paper's own dense head.

Bruns, Lamparter, Galic, Jiang, "Single Image Estimation of Cell Migration Direction by Deep Circular Regression",
arXiv 2406.19162 (2024), Table 2: backbone -> global average pool -> 1024 ReLU -> 256 ReLU -> outputs.

Backbones ("the smallest architecture in each case", all layers up to the first dense one) and their weights:
    efficientnet_v2_s  1280 channels, 20,177,488 parameters, head 1,574,658; ImageNet (torchvision IMAGENET1K_V1)
    resnet50           2048 channels, 23,508,032 parameters, head 2,361,090; ImageNet (torchvision IMAGENET1K_V1)
    yolov8_n            256 channels,  1,272,656 parameters, head   526,082; COCO (ultralytics, layers 0 to 9)

Deviations: the authors' Keras backbones are EfficientNetV2-S, ResNet50 *V2* (pre-activation; the paper cites the first
ResNet, which torchvision has) and YOLOv8 xs. Their presets divide an image that is already in [0, 1] by 255 once more;
here the grey image in [0, 1] is repeated over three channels and standardised with the ImageNet mean and deviation that
the weights were trained with (YOLOv8's were trained on plain [0, 1]). The head starts from Keras' Glorot uniform.

Nothing is downloaded: weights come from a file that is named or from torch's own cache folder.
"""

from __future__ import annotations

import os
import pickle
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch
import torchvision
from torch import Tensor, nn

from lightning_modules.networks.probing_cnn import glorot_uniform

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


class FineTuningNet(nn.Module):
    """A backbone without its classifier and the head of Table 2; `backbone` and `head` can be trained apart.

    Args:
        backbone: "efficientnet_v2_s", "resnet50" or "yolov8_n".
        outputs: number of output neurons (#): 1 for an angle, 2 for a point on the circle.
        pretrained_weights: None for a random start; "cache" for torchvision's file in torch's cache folder
            (`torch.hub.get_dir()/checkpoints`); else the path of a file holding a state dict of the whole classifier or
            of its backbone. Only tensors are read from it (`weights_only=True`).

    Raises:
        ValueError: an unknown backbone, outputs other than 1 or 2, a file that is no state dict of this backbone, or
            yolov8_n without the optional package.
        FileNotFoundError: the weights are not where `pretrained_weights` says.

    """

    mean: Tensor
    std: Tensor

    def __init__(self, backbone: str, outputs: int = 2, pretrained_weights: str | None = None) -> None:
        if backbone not in BACKBONES:
            raise ValueError(f"backbone must be one of {', '.join(BACKBONES)}, got {backbone!r}")
        if outputs not in (1, 2):
            raise ValueError(f"outputs must be 1 (angle) or 2 (circle), got {outputs}")
        super().__init__()
        kind = BACKBONES[backbone]
        self.backbone = kind.build()
        self.head = nn.Sequential(
            nn.Linear(kind.channels, 1024), nn.ReLU(), nn.Linear(1024, 256), nn.ReLU(), nn.Linear(256, outputs)
        )
        glorot_uniform(self.head)
        mean, std = (IMAGENET_MEAN, IMAGENET_STD) if kind.imagenet_scaling else ((0.0,) * 3, (1.0,) * 3)
        self.register_buffer("mean", torch.tensor(mean).reshape(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).reshape(3, 1, 1), persistent=False)
        if pretrained_weights is not None:
            _load(self.backbone, _weights_file(backbone, pretrained_weights), kind.prefix, backbone)

    def forward(self, image: Tensor) -> Tensor:
        """Image (B, 1, y, x), grey / 255 -> raw outputs (B, outputs), before the output activation."""
        three_channels = (image.expand(-1, 3, -1, -1) - self.mean) / self.std
        features = self.backbone(three_channels)  # (B, channels, y / 32, x / 32)
        return self.head(features.mean(dim=(-2, -1)))


class _Kind(NamedTuple):
    build: Callable[[], nn.Module]
    channels: int
    prefix: str
    """What the whole model's state dict writes before the names of the backbone's own parameters."""
    cache_file: str | None
    imagenet_scaling: bool


def _efficientnet_v2_s() -> nn.Module:
    return torchvision.models.efficientnet_v2_s(weights=None).features


def _resnet50() -> nn.Module:
    model = torchvision.models.resnet50(weights=None)
    del model.avgpool, model.fc
    return nn.Sequential(OrderedDict(model.named_children()))


def _yolov8_n() -> nn.Module:
    os.environ.setdefault("YOLO_OFFLINE", "true")  # its import asks the name servers otherwise
    try:
        from ultralytics.nn.tasks import DetectionModel
    except ImportError:
        raise ValueError(
            "backbone 'yolov8_n' needs a package under AGPL-3.0; install the extra: pip install 'mechanolab[yolo]'"
        ) from None
    return nn.Sequential(*DetectionModel("yolov8n.yaml", ch=3, nc=80, verbose=False).model[:10])


BACKBONES = {
    "efficientnet_v2_s": _Kind(_efficientnet_v2_s, 1280, "features.", "efficientnet_v2_s-dd5fe13b.pth", True),
    "resnet50": _Kind(_resnet50, 2048, "", "resnet50-0676ba61.pth", True),
    "yolov8_n": _Kind(_yolov8_n, 256, "model.", None, False),
}


def _weights_file(backbone: str, pretrained_weights: str) -> Path:
    """The file that `pretrained_weights` means; it exists."""
    file_name = BACKBONES[backbone].cache_file
    if pretrained_weights == "cache":
        if file_name is None:
            raise ValueError(
                f"pretrained_weights cannot be 'cache' for {backbone}, whose published file holds pickled code: save "
                f"its tensors once with torch.save(YOLO('yolov8n.pt').model.state_dict(), FILE) and name FILE"
            )
        path = Path(torch.hub.get_dir()) / "checkpoints" / file_name
    else:
        path = Path(pretrained_weights).expanduser()
    if not path.is_file():
        source = f"put torchvision's {file_name} there" if file_name else "save the backbone's state dict there"
        raise FileNotFoundError(
            f"no weights for {backbone} at {path}: {source}, or set pretrained_weights to another file or to null"
        )
    return path


def _load(module: nn.Module, path: Path, prefix: str, backbone: str) -> None:
    """Fill the backbone from a state dict of itself or of the whole model; the classifier's tensors are left out."""
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, OSError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ValueError(f"pretrained_weights: {path} holds no plain state dict ({reason})") from None
    if not isinstance(state, dict) or not all(isinstance(name, str) for name in state):
        raise ValueError(f"pretrained_weights: {path} holds no plain state dict")
    by_name = {name.removeprefix(prefix): tensor for name, tensor in state.items()}
    wanted = module.state_dict()
    missing = [name for name in wanted if name not in by_name]
    if missing:
        raise ValueError(
            f"pretrained_weights: {path} is no state dict of {backbone}: {len(missing)} of its {len(wanted)} tensors "
            f"are missing, the first is {prefix}{missing[0]}"
        )
    try:
        module.load_state_dict({name: by_name[name] for name in wanted})
    except RuntimeError as error:
        reason = str(error).splitlines()[-1].strip()
        raise ValueError(f"pretrained_weights: {path} is no state dict of {backbone}: {reason}") from None
