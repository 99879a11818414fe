"""Layers in an `nn.ModuleList`: a residual tower that also returns every layer's value, as a list."""

import torch
from torch import nn


class Tower(nn.Module):
    def __init__(self, width=24, depth=3):
        super().__init__()
        self.linears = nn.ModuleList([nn.Linear(width, width) for _ in range(depth)])
        self.norms = nn.ModuleList([nn.LayerNorm(width) for _ in range(depth)])

    def forward(self, x):
        values = []
        for linear, norm in zip(self.linears, self.norms, strict=True):
            x = x + torch.tanh(linear(norm(x)))
            values.append(x)
        return x.mean(dim=-1), values


def example_inputs():
    generator = torch.Generator().manual_seed(0)
    return (torch.randn(4, 24, generator=generator),)
