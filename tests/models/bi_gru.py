"""A two-layer bidirectional GRU: the initial state is an input, the final state an output."""

import torch
from torch import nn


class BiGRUEncoder(nn.Module):
    def __init__(self, input_size=10, hidden_size=14):
        super().__init__()
        self.gru = nn.GRU(input_size, hidden_size, num_layers=2, batch_first=True, bidirectional=True)
        self.norm = nn.LayerNorm(2 * hidden_size)

    def forward(self, x, h0):
        out, hn = self.gru(x, h0)
        return self.norm(out), hn


def example_inputs():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, 9, 10, generator=generator)
    h0 = torch.randn(4, 2, 14, generator=generator)
    return x, h0
