"""Four-class CNN of Nishimoto et al. 2019, the only predecessor that the circular regression is compared with.

Nishimoto, Tokuoka, Yamada, Hiroi, Funahashi, "Predicting the future direction of cell movement with convolutional
neural networks", PLOS ONE 14(9), e0221245 (2019); layers, dropout and weight decay as in the authors' repository
(funalab/PredictMovingDirection, `arch.json`, `param.json`). 236,936 trainable parameters.

Convolutions have no padding; the pools cover the last row and column (Chainer's `cover_all`), which in torch is
`ceil_mode`. Weights start as in Chainer: normal with variance 1 / fan-in (LeCun), biases zero.
"""

from __future__ import annotations

from torch import Tensor, nn

QUADRANTS = 4
SIZE_PX = 128


class QuadrantCNN(nn.Module):
    """Eight 3 x 3 convolutions in four pairs, a dense layer with dropout 0.5, four classes."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(
            *_pair(1, 16),  # (B, 16, 62, 62)
            *_pair(16, 16),  # (B, 16, 29, 29)
            *_pair(16, 32),  # (B, 32, 13, 13)
            *_pair(32, 64),  # (B, 64, 5, 5)
        )
        self.classifier = nn.Sequential(
            nn.Flatten(),  # (B, 1600)
            nn.Linear(1600, 100),
            nn.ReLU(),
            nn.Dropout(0.5),
            nn.Linear(100, QUADRANTS),
        )
        for layer in self.modules():
            if isinstance(layer, nn.Conv2d | nn.Linear):
                nn.init.kaiming_normal_(layer.weight, nonlinearity="linear")  # gain 1: LeCun normal
                nn.init.zeros_(layer.bias)

    def forward(self, image: Tensor) -> Tensor:
        """Image (B, 1, 128, 128), each stretched to [0, 1] -> logits (B, 4) of the quadrants I to IV (y up)."""
        if image.shape[1:] != (1, SIZE_PX, SIZE_PX):
            raise ValueError(f"image must have shape (batch, 1, 128, 128), got {tuple(image.shape)}")
        return self.classifier(self.features(image))


def _pair(in_channels: int, out_channels: int) -> tuple[nn.Module, ...]:
    return (
        nn.Conv2d(in_channels, out_channels, kernel_size=3),
        nn.ReLU(),
        nn.Conv2d(out_channels, out_channels, kernel_size=3),
        nn.ReLU(),
        nn.MaxPool2d(2, ceil_mode=True),
    )
