"""The MNIST classifier of the migration guides: two convolutions, two fully connected layers, softmax."""

import torch
from torch import nn


class MnistClassifier(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv1 = nn.Conv2d(1, 32, kernel_size=3, padding=1)
        self.conv2 = nn.Conv2d(32, 64, kernel_size=3, padding=1)
        self.pool = nn.MaxPool2d(2)
        self.fc1 = nn.Linear(3136, 128)
        self.fc2 = nn.Linear(128, 10)

    def forward(self, image):
        x = self.pool(torch.relu(self.conv1(image)))
        x = self.pool(torch.relu(self.conv2(x)))
        x = torch.flatten(x, 1)
        hidden = torch.relu(self.fc1(x))
        logits = self.fc2(hidden)
        return torch.softmax(logits, dim=1)


def example_inputs():
    generator = torch.Generator().manual_seed(0)
    return (torch.randn(1, 1, 28, 28, generator=generator),)
