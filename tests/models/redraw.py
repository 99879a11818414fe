"""Random weights with which every layer matters: default ones (zero biases, unit norms) hide folding bugs."""

import torch
from torch import nn

_NORMS = (nn.modules.batchnorm._NormBase, nn.LayerNorm, nn.GroupNorm)


def redraw(module: nn.Module, seed: int = 0, gain: float = 1.0) -> nn.Module:
    """Redraw all weights in place, so that activations stay of order 1; returns the module in eval mode.

    Weights are N(0, gain / fan_in), embeddings N(0, 1), biases N(0, 0.2**2), norm weights in 0.8..1.2,
    running means N(0, 0.2**2), running variances in 0.5..1.5. The order of `named_parameters` is the order of
    drawing.
    """
    generator = torch.Generator().manual_seed(seed)

    def normal(tensor, std, mean=0.0):
        tensor.copy_(mean + std * torch.randn(tensor.shape, generator=generator))

    def uniform(tensor, low, high):
        tensor.copy_(low + (high - low) * torch.rand(tensor.shape, generator=generator))

    with torch.no_grad():
        drawn = set()
        for owner in module.modules():
            for name, tensor in owner.named_parameters(recurse=False):
                if id(tensor) in drawn:  # tied
                    continue
                drawn.add(id(tensor))
                if "bias" in name:
                    normal(tensor, 0.2)
                elif isinstance(owner, _NORMS) or (tensor.ndim == 1 and "weight" in name):
                    uniform(tensor, 0.8, 1.2)
                elif isinstance(owner, nn.Embedding):
                    normal(tensor, 1.0)
                else:
                    normal(tensor, (gain / _fan_in(owner, tensor)) ** 0.5)
            for name, tensor in owner.named_buffers(recurse=False):
                if name == "running_mean":
                    normal(tensor, 0.2)
                elif name == "running_var":
                    uniform(tensor, 0.5, 1.5)
    return module.eval()


def _fan_in(owner: nn.Module, tensor: torch.Tensor) -> int:
    if tensor.ndim < 2:
        return 1
    if type(owner).__name__ == "Conv1D":  # GPT-2's linear layer: [in, out]
        return tensor.shape[0]
    if isinstance(owner, nn.modules.conv._ConvTransposeNd):  # [in, out / groups, kernel...]
        taps = tensor[0, 0].numel() / torch.tensor(owner.stride).prod().item()
        return max(1, round(tensor.shape[0] / owner.groups * taps))
    return tensor[0].numel()
