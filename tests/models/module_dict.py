"""Heads in an `nn.ModuleDict`: an input by keyword, a dict as the result, one activation shared by all."""

import torch
from torch import nn


class Heads(nn.Module):
    def __init__(self, features=20):
        super().__init__()
        self.activation = nn.LeakyReLU(0.1)
        self.trunk = nn.Linear(features, 32)
        self.heads = nn.ModuleDict({"box": nn.Linear(32, 4), "score": nn.Linear(32, 1), "label": nn.Linear(32, 7)})

    def forward(self, features, scale):
        shared = self.activation(self.trunk(features))
        result = {name: head(self.activation(shared)) for name, head in self.heads.items()}
        result["box"] = result["box"] * scale
        return result


def example_inputs():
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(3, 20, generator=generator)
    return (features,), {"scale": torch.rand(3, 1, generator=generator)}
