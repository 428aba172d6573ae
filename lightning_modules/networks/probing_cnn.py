"""Probing CNN: the small network that Bruns et al. used to choose among nine output configurations.

Bruns, Lamparter, Galic, Jiang, "Single Image Estimation of Cell Migration Direction by Deep Circular Regression",
arXiv 2406.19162 (2024), Table 1. Trainable parameters: 416 + 4,640 + 7,373,056 + 4,112 + 17 (one output) or 34 (two) =
7,382,241 or 7,382,258.

Deviations: none in the layers. The paper names no initialisation; Keras' default (Glorot uniform weights, zero biases)
is used because the authors' code is Keras. Keras flattens (y, x, channel), torch (channel, y, x): the same network up
to an order of the 28,800 inputs, which a random start makes irrelevant.
"""

from __future__ import annotations

from torch import Tensor, nn

SIZE_PX = 128


class ProbingCNN(nn.Module):
    """Two convolutions and three dense layers; the output activation belongs to the configuration, not to the network.

    Args:
        outputs: number of output neurons (#): 1 for an angle, 2 for a point on the circle.

    """

    def __init__(self, outputs: int = 2) -> None:
        if outputs not in (1, 2):
            raise ValueError(f"outputs must be 1 (angle) or 2 (circle), got {outputs}")
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(1, 16, kernel_size=5),  # (B, 16, 124, 124)
            nn.ReLU(),
            nn.MaxPool2d(2),  # (B, 16, 62, 62)
            nn.Conv2d(16, 32, kernel_size=3),  # (B, 32, 60, 60)
            nn.ReLU(),
            nn.MaxPool2d(2),  # (B, 32, 30, 30)
            nn.Flatten(),  # (B, 28800)
            nn.Linear(28_800, 256),
            nn.ReLU(),
            nn.Linear(256, 16),
            nn.ReLU(),
            nn.Linear(16, outputs),
        )
        glorot_uniform(self.layers)

    def forward(self, image: Tensor) -> Tensor:
        """Image (B, 1, 128, 128), grey / 255 -> raw outputs (B, outputs), before the output activation."""
        if image.shape[1:] != (1, SIZE_PX, SIZE_PX):
            raise ValueError(f"image must have shape (batch, 1, 128, 128), got {tuple(image.shape)}")
        return self.layers(image)


def glorot_uniform(module: nn.Module) -> None:
    """Set Keras' default start in place: Glorot uniform weights and zero biases in dense and convolutional layers."""
    for layer in module.modules():
        if isinstance(layer, nn.Conv2d | nn.Linear):
            nn.init.xavier_uniform_(layer.weight)
            nn.init.zeros_(layer.bias)
