"""A custom `torch.autograd.Function` in `forward`: its forward pass is traced, its backward is not needed."""

import torch
from torch import nn


class ScaledSquare(torch.autograd.Function):
    """x -> scale * x**2, with a clipped gradient."""

    @staticmethod
    def forward(ctx, x, scale):
        ctx.save_for_backward(x)
        ctx.scale = scale
        return scale * x * x

    @staticmethod
    def backward(ctx, grad_output):
        (x,) = ctx.saved_tensors
        return torch.clamp(2 * ctx.scale * x * grad_output, -1, 1), None


class SquareNet(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc1 = nn.Linear(16, 24)
        self.fc2 = nn.Linear(24, 3)

    def forward(self, x):
        hidden = ScaledSquare.apply(self.fc1(x), 0.5)
        return self.fc2(hidden)


def example_inputs():
    generator = torch.Generator().manual_seed(0)
    return (torch.randn(4, 16, generator=generator),)
