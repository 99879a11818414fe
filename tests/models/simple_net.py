"""SimpleNet of the migration guides: two linear layers, ReLU and dropout between them."""

import torch
from torch import nn


class SimpleNet(nn.Module):
    def __init__(self, input_size=784, hidden_size=256, num_classes=10):
        super().__init__()
        self.fc1 = nn.Linear(input_size, hidden_size)
        self.relu = nn.ReLU()
        self.dropout = nn.Dropout(0.2)
        self.fc2 = nn.Linear(hidden_size, num_classes)

    def forward(self, x):
        x = x.view(x.size(0), -1)
        x = self.relu(self.fc1(x))
        x = self.dropout(x)
        return self.fc2(x)


def example_inputs():
    generator = torch.Generator().manual_seed(0)
    return (torch.randn(4, 1, 28, 28, generator=generator),)
