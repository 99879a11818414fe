"""An `nn.Sequential` as the whole model, built by a function."""

from collections import OrderedDict

import torch
from torch import nn


def build_model():
    return nn.Sequential(
        OrderedDict(
            conv=nn.Conv2d(3, 8, 3, stride=2, padding=1),
            norm=nn.BatchNorm2d(8),
            act=nn.SiLU(),
            pool=nn.AdaptiveAvgPool2d(1),
            flat=nn.Flatten(),
            head=nn.Linear(8, 4),
        )
    )


def example_inputs():
    generator = torch.Generator().manual_seed(0)
    return (torch.randn(2, 3, 16, 16, generator=generator),)
