"""UNet's building block: (convolution, batch norm, ReLU) twice."""

import torch
from torch import nn


class DoubleConv(nn.Module):
    def __init__(self, in_channels=3, out_channels=16, mid_channels=None):
        super().__init__()
        mid_channels = mid_channels or out_channels
        self.double_conv = nn.Sequential(
            nn.Conv2d(in_channels, mid_channels, kernel_size=3, padding=1, bias=False),
            nn.BatchNorm2d(mid_channels),
            nn.ReLU(inplace=True),
            nn.Conv2d(mid_channels, out_channels, kernel_size=3, padding=1, bias=False),
            nn.BatchNorm2d(out_channels),
            nn.ReLU(inplace=True),
        )

    def forward(self, x):
        return self.double_conv(x)


def example_inputs():
    generator = torch.Generator().manual_seed(0)
    return (torch.randn(1, 3, 32, 32, generator=generator),)
