"""ResNet, MobileNetV2 and DenseNet, written out: the same layers and widths as in their papers."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def _conv(inputs: int, outputs: int, size: int, stride: int = 1, groups: int = 1) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, size, stride, size // 2, groups=groups, bias=False)


class _Basic(nn.Module):
    """Two 3x3 convolutions around a skip."""

    expansion = 1

    def __init__(self, inputs: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = _conv(inputs, width, 3, stride), nn.BatchNorm2d(width)
        self.conv2, self.bn2 = _conv(width, width, 3), nn.BatchNorm2d(width)
        self.downsample = _skip(inputs, width, stride)

    def forward(self, x: Tensor) -> Tensor:
        out = F.relu(self.bn1(self.conv1(x)))
        return F.relu(self.bn2(self.conv2(out)) + self.downsample(x))


class _Bottleneck(nn.Module):
    """1x1, 3x3 and 1x1 convolutions around a skip."""

    expansion = 4

    def __init__(self, inputs: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = _conv(inputs, width, 1), nn.BatchNorm2d(width)
        self.conv2, self.bn2 = _conv(width, width, 3, stride), nn.BatchNorm2d(width)
        self.conv3, self.bn3 = _conv(width, 4 * width, 1), nn.BatchNorm2d(4 * width)
        self.downsample = _skip(inputs, 4 * width, stride)

    def forward(self, x: Tensor) -> Tensor:
        out = F.relu(self.bn1(self.conv1(x)))
        out = F.relu(self.bn2(self.conv2(out)))
        return F.relu(self.bn3(self.conv3(out)) + self.downsample(x))


def _skip(inputs: int, outputs: int, stride: int) -> nn.Module:
    if inputs == outputs and stride == 1:
        return nn.Identity()
    return nn.Sequential(_conv(inputs, outputs, 1, stride), nn.BatchNorm2d(outputs))


class ResNet(nn.Module):
    """He et al., Deep Residual Learning for Image Recognition, 2015."""

    def __init__(
        self, block: type[_Basic] | type[_Bottleneck], counts: tuple[int, ...], classes: int = 1000
    ) -> None:
        super().__init__()
        self.conv1, self.bn1 = _conv(3, 64, 7, 2), nn.BatchNorm2d(64)
        inputs, blocks = 64, list[nn.Module]()
        for stage, count in enumerate(counts):
            width = 64 * 2**stage
            for at in range(count):
                blocks.append(block(inputs, width, 2 if stage and not at else 1))
                inputs = width * block.expansion
        self.blocks = nn.Sequential(*blocks)
        self.fc = nn.Linear(inputs, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = F.max_pool2d(F.relu(self.bn1(self.conv1(x))), 3, 2, 1)
        return self.fc(F.adaptive_avg_pool2d(self.blocks(x), 1).flatten(1))


class _Inverted(nn.Module):
    """Expand, convolve each channel alone, project; a skip where shapes allow it."""

    def __init__(self, inputs: int, outputs: int, stride: int, expand: int) -> None:
        super().__init__()
        width = inputs * expand
        layers = [_conv(inputs, width, 1), nn.BatchNorm2d(width), nn.ReLU6()] if expand > 1 else []
        self.body = nn.Sequential(
            *layers,
            _conv(width, width, 3, stride, groups=width),
            nn.BatchNorm2d(width),
            nn.ReLU6(),
            _conv(width, outputs, 1),
            nn.BatchNorm2d(outputs),
        )
        self.skips = stride == 1 and inputs == outputs

    def forward(self, x: Tensor) -> Tensor:
        return x + self.body(x) if self.skips else self.body(x)


class MobileNetV2(nn.Module):
    """Sandler et al., Inverted Residuals and Linear Bottlenecks, 2018."""

    # expansion, outputs, repeats, stride
    stages = (
        (1, 16, 1, 1),
        (6, 24, 2, 2),
        (6, 32, 3, 2),
        (6, 64, 4, 2),
        (6, 96, 3, 1),
        (6, 160, 3, 2),
        (6, 320, 1, 1),
    )

    def __init__(self, classes: int = 1000) -> None:
        super().__init__()
        layers: list[nn.Module] = [_conv(3, 32, 3, 2), nn.BatchNorm2d(32), nn.ReLU6()]
        inputs = 32
        for expand, outputs, repeats, stride in self.stages:
            for at in range(repeats):
                layers.append(_Inverted(inputs, outputs, 1 if at else stride, expand))
                inputs = outputs
        layers += [_conv(inputs, 1280, 1), nn.BatchNorm2d(1280), nn.ReLU6()]
        self.features = nn.Sequential(*layers)
        self.drop, self.fc = nn.Dropout(0.2), nn.Linear(1280, classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.drop(self.features(x).mean((2, 3))))


class _Dense(nn.Module):
    """A layer of a dense block: 32 more channels beside those that it reads."""

    def __init__(self, inputs: int, growth: int) -> None:
        super().__init__()
        self.norm1, self.conv1 = nn.BatchNorm2d(inputs), _conv(inputs, 4 * growth, 1)
        self.norm2, self.conv2 = nn.BatchNorm2d(4 * growth), _conv(4 * growth, growth, 3)

    def forward(self, parts: list[Tensor]) -> Tensor:
        x = self.conv1(F.relu(self.norm1(torch.cat(parts, 1))))
        return self.conv2(F.relu(self.norm2(x)))


class _DenseBlock(nn.Module):
    def __init__(self, inputs: int, count: int, growth: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(_Dense(inputs + i * growth, growth) for i in range(count))

    def forward(self, x: Tensor) -> Tensor:
        parts = [x]
        for layer in self.layers:
            parts.append(layer(parts))
        return torch.cat(parts, 1)


class DenseNet(nn.Module):
    """Huang et al., Densely Connected Convolutional Networks, 2016."""

    def __init__(self, counts: tuple[int, ...], growth: int = 32, classes: int = 1000) -> None:
        super().__init__()
        width = 64
        stages: list[nn.Module] = []
        for at, count in enumerate(counts):
            stages.append(_DenseBlock(width, count, growth))
            width += count * growth
            if at < len(counts) - 1:
                half = width // 2
                norm = nn.BatchNorm2d(width)
                stages.append(
                    nn.Sequential(norm, nn.ReLU(), _conv(width, half, 1), nn.AvgPool2d(2))
                )
                width = half
        self.conv0, self.norm0 = _conv(3, 64, 7, 2), nn.BatchNorm2d(64)
        self.stages = nn.Sequential(*stages)
        self.norm5, self.fc = nn.BatchNorm2d(width), nn.Linear(width, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = F.max_pool2d(F.relu(self.norm0(self.conv0(x))), 3, 2, 1)
        x = F.relu(self.norm5(self.stages(x)))
        return self.fc(F.adaptive_avg_pool2d(x, 1).flatten(1))


def resnet18() -> ResNet:
    """Build it: 11.7 million parameters."""
    return ResNet(_Basic, (2, 2, 2, 2))


def resnet50() -> ResNet:
    """Build it: 25.6 million parameters."""
    return ResNet(_Bottleneck, (3, 4, 6, 3))


def mobilenet_v2() -> MobileNetV2:
    """Build it: 3.5 million parameters."""
    return MobileNetV2()


def densenet121() -> DenseNet:
    """Build it: 8.0 million parameters."""
    return DenseNet((6, 12, 24, 16))


def densenet201() -> DenseNet:
    """Build it: 20.0 million parameters."""
    return DenseNet((6, 12, 48, 32))


VISION: dict[str, Callable[[], nn.Module]] = {
    "resnet18": resnet18,
    "resnet50": resnet50,
    "mobilenet_v2": mobilenet_v2,
    "densenet121": densenet121,
}
