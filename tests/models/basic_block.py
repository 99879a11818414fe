"""ResNet's basic block twice: with down-sampling, then without; the addition is in place."""

import torch
from torch import nn


class BasicBlock(nn.Module):
    expansion = 1

    def __init__(self, in_channels, channels, stride=1):
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, channels, 3, stride=stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = None
        if stride != 1 or in_channels != channels:
            self.downsample = nn.Sequential(
                nn.Conv2d(in_channels, channels, 1, stride=stride, bias=False), nn.BatchNorm2d(channels)
            )

    def forward(self, x):
        identity = x
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        if self.downsample is not None:
            identity = self.downsample(x)
        out += identity
        return self.relu(out)


class Blocks(nn.Module):
    def __init__(self):
        super().__init__()
        self.down = BasicBlock(16, 32, stride=2)
        self.same = BasicBlock(32, 32)

    def forward(self, x):
        return self.same(self.down(x))


def example_inputs():
    generator = torch.Generator().manual_seed(0)
    return (torch.randn(2, 16, 28, 28, generator=generator),)
