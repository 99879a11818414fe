"""Whether a mail is wanted, from the numbers of its words."""

import torch
from torch import nn


class MailModel(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)  # a project of yours would name its trained weights in pyproject.toml
        self.embedding = nn.Embedding(100, 16)
        self.wanted = nn.Linear(16, 1)

    def forward(self, words: torch.Tensor) -> torch.Tensor:
        return torch.sigmoid(self.wanted(self.embedding(words).mean(dim=1)))
