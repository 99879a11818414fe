"""Pieces of diffusers: denoisers and image decoders."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from tests.zoo.entry import Built, floats

Draw = Callable[[], dict[str, Any]]


class Tensors(nn.Module):
    """The model's output as a tuple: diffusers returns records of a class of its own for every model."""

    def __init__(self, model: nn.Module, method: str = "forward") -> None:
        super().__init__()
        self.model = model
        self.method = method

    def forward(self, **given: Any) -> Any:
        return getattr(self.model, self.method)(**given, return_dict=False)


def _diffusers(name: str, draw: Draw, method: str = "forward", **config: Any) -> Callable[[], Built]:
    def build() -> Built:
        kind = getattr(importlib.import_module("diffusers"), name)
        torch.manual_seed(0)
        return Tensors(kind(**config), method), (), draw()

    return build


def _step() -> torch.Tensor:
    return torch.tensor([7])


UNET_2D = {"sample_size": 16, "block_out_channels": (16, 32), "layers_per_block": 1, "norm_num_groups": 8}
DIFFUSION: dict[str, Callable[[], Built]] = {
    "unet_2d_condition": _diffusers(
        "UNet2DConditionModel",
        lambda: {"sample": floats(1, 4, 16, 16), "timestep": _step(), "encoder_hidden_states": floats(1, 5, 24)},
        **UNET_2D, cross_attention_dim=24, attention_head_dim=8,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"), up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
    ),
    "unet_2d": _diffusers(
        "UNet2DModel", lambda: {"sample": floats(1, 3, 16, 16), "timestep": _step()}, **UNET_2D, attention_head_dim=8,
        down_block_types=("DownBlock2D", "AttnDownBlock2D"), up_block_types=("AttnUpBlock2D", "UpBlock2D"),
    ),
    "autoencoder_kl_decoder": _diffusers(
        "AutoencoderKL", lambda: {"z": floats(1, 4, 8, 8)}, "decode", block_out_channels=(16, 32), norm_num_groups=8,
        down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2, latent_channels=4,
    ),
    "vq_decoder": _diffusers(
        "VQModel", lambda: {"h": floats(1, 3, 8, 8), "force_not_quantize": True}, "decode", block_out_channels=(16, 32),
        norm_num_groups=8, down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2,
    ),
    "dit": _diffusers(
        "DiTTransformer2DModel",
        lambda: {"hidden_states": floats(1, 4, 8, 8), "timestep": _step(), "class_labels": torch.tensor([3])},
        num_attention_heads=4, attention_head_dim=8, in_channels=4, out_channels=8, num_layers=2, sample_size=8,
        patch_size=2, norm_num_groups=8, num_embeds_ada_norm=10,
    ),
    "pixart": _diffusers(
        "PixArtTransformer2DModel",
        lambda: {"hidden_states": floats(1, 4, 8, 8), "timestep": _step(), "encoder_hidden_states": floats(1, 5, 24),
                 "added_cond_kwargs": {"resolution": None, "aspect_ratio": None}},
        num_attention_heads=4, attention_head_dim=8, in_channels=4, out_channels=8, num_layers=2, sample_size=8,
        patch_size=2, norm_num_groups=8, caption_channels=24, cross_attention_dim=32, use_additional_conditions=False,
    ),
    "sd3_transformer": _diffusers(
        "SD3Transformer2DModel",
        lambda: {"hidden_states": floats(1, 4, 8, 8), "timestep": _step(), "encoder_hidden_states": floats(1, 5, 24),
                 "pooled_projections": floats(1, 16)},
        sample_size=8, patch_size=2, in_channels=4, num_layers=2, attention_head_dim=8, num_attention_heads=4,
        joint_attention_dim=24, caption_projection_dim=32, pooled_projection_dim=16, out_channels=4,
        pos_embed_max_size=8,
    ),
}  # fmt: skip
