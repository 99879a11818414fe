"""How a customer will rate a shop, from what was counted on the last visits."""

import torch
from parts import Block
from torch import nn


class Ratings(nn.Module):
    def __init__(self, hidden: int = 16) -> None:
        super().__init__()
        torch.manual_seed(0)  # a project of yours would name its trained weights in pyproject.toml
        self.block = Block(12, hidden)
        self.score = nn.Linear(hidden, 5)

    def forward(self, visits: torch.Tensor) -> torch.Tensor:
        return torch.softmax(self.score(self.block(visits)), dim=1)


def example_inputs() -> tuple[torch.Tensor]:
    return (torch.randn(4, 12),)
