"""A two-layer bidirectional LSTM over embeddings: initial states are inputs, final states are outputs."""

import torch
from torch import nn


class BiLSTMTagger(nn.Module):
    def __init__(self, vocabulary=50, embedding=10, hidden_size=14, num_tags=6):
        super().__init__()
        self.embedding = nn.Embedding(vocabulary, embedding)
        self.lstm = nn.LSTM(embedding, hidden_size, num_layers=2, batch_first=True, bidirectional=True)
        self.fc = nn.Linear(2 * hidden_size, num_tags)

    def forward(self, tokens, state):
        out, (hn, cn) = self.lstm(self.embedding(tokens), state)
        return self.fc(out), (hn, cn)


def example_inputs():
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(0, 50, (2, 9), generator=generator)
    h0 = torch.randn(4, 2, 14, generator=generator)
    c0 = torch.randn(4, 2, 14, generator=generator)
    return tokens, (h0, c0)
