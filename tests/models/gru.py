"""A two-layer GRU: the initial state is an input, the final state an output."""

import torch
from torch import nn


class GRUModel(nn.Module):
    def __init__(self, input_size=12, hidden_size=20, num_layers=2, num_classes=5):
        super().__init__()
        self.gru = nn.GRU(input_size, hidden_size, num_layers, batch_first=True)
        self.fc = nn.Linear(hidden_size, num_classes)

    def forward(self, x, h0):
        out, hn = self.gru(x, h0)
        return self.fc(out[:, -1, :]), out, hn


def example_inputs():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(3, 7, 12, generator=generator)
    h0 = torch.randn(2, 3, 20, generator=generator)
    return x, h0
