"""A multi-layer perceptron with GELU and dropout, its layers made in a loop."""

from itertools import pairwise

import torch
from torch import nn


class MLP(nn.Module):
    def __init__(self, sizes=(32, 64, 48, 5), dropout=0.5):
        super().__init__()
        layers = []
        for fan_in, fan_out in pairwise(sizes[:-1]):
            layers += [nn.Linear(fan_in, fan_out), nn.GELU(), nn.Dropout(dropout)]
        self.body = nn.Sequential(*layers)
        self.head = nn.Linear(sizes[-2], sizes[-1])

    def forward(self, features):
        return self.head(self.body(features))


def example_inputs():
    generator = torch.Generator().manual_seed(0)
    return (torch.randn(8, 32, generator=generator),)
