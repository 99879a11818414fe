"""ResNet's bottleneck block twice: with down-sampling, then without; the addition is in place."""

import torch
from torch import nn


class Bottleneck(nn.Module):
    expansion = 4

    def __init__(self, in_channels, channels, stride=1, downsample=None):
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, channels, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, stride=stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.conv3 = nn.Conv2d(channels, channels * self.expansion, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(channels * self.expansion)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = downsample

    def forward(self, x):
        identity = x
        out = self.conv1(x)
        out = self.bn1(out)
        out = self.relu(out)
        out = self.conv2(out)
        out = self.bn2(out)
        out = self.relu(out)
        out = self.conv3(out)
        out = self.bn3(out)
        if self.downsample is not None:
            identity = self.downsample(x)
        out += identity
        return self.relu(out)


def build_model():
    downsample = nn.Sequential(nn.Conv2d(24, 64, 1, stride=2, bias=False), nn.BatchNorm2d(64))
    return nn.Sequential(Bottleneck(24, 16, stride=2, downsample=downsample), Bottleneck(64, 16))


def example_inputs():
    generator = torch.Generator().manual_seed(0)
    return (torch.randn(1, 24, 14, 14, generator=generator),)
