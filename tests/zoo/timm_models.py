"""timm: small variants, or arguments that make them so."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

import torch

from tests.zoo.entry import Built, floats
from tests.zoo.without_torchvision import import_timm


def _timm(name: str, size: int = 32, **options: Any) -> Callable[[], Built]:
    def build() -> Built:
        timm = import_timm()
        torch.manual_seed(0)
        return timm.create_model(name, pretrained=False, num_classes=5, **options), (floats(1, 3, size, size),), {}

    return build


def _class(path: str, size: int = 32, **options: Any) -> Callable[[], Built]:
    """A class of timm.models: for those whose factories fix what makes them large."""

    def build() -> Built:
        import_timm()
        module, _, name = path.partition(".")
        torch.manual_seed(0)
        kind = getattr(importlib.import_module(f"timm.models.{module}"), name)
        return kind(num_classes=5, **options), (floats(1, 3, size, size),), {}

    return build


def _mvit() -> Built:
    import_timm()
    module = importlib.import_module("timm.models.mvitv2")
    torch.manual_seed(0)
    config = module.MultiScaleVitCfg(depths=(1, 1), embed_dim=16, num_heads=1)
    return module.MultiScaleVit(config, img_size=64, num_classes=5), (floats(1, 3, 64, 64),), {}


VIT = {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 4}
TIMM: dict[str, Callable[[], Built]] = {
    "timm_beit": _timm("beit_base_patch16_224", **VIT),
    "timm_cait": _timm("cait_xxs24_224", img_size=32, patch_size=8, embed_dim=32, depth=2, num_heads=4),
    "timm_coat_lite": _timm("coat_lite_tiny", img_size=32, embed_dims=[8, 16, 32, 32], serial_depths=[1, 1, 1, 1]),
    "timm_coatnet": _timm("coatnet_pico_rw_224", 64, img_size=64, depths=(1, 1, 1, 1), embed_dim=(32, 32, 32, 32)),
    "timm_convmixer": _class("convmixer.ConvMixer", dim=32, depth=2, kernel_size=5, patch_size=4),
    "timm_convnext": _timm("convnext_atto", depths=(1, 1, 1, 1), dims=(8, 16, 24, 32)),
    "timm_convnextv2": _timm("convnextv2_atto", depths=(1, 1, 1, 1), dims=(8, 16, 24, 32)),
    "timm_crossvit": _timm("crossvit_tiny_240", 48, img_size=48, embed_dim=(16, 32), depth=((1, 1, 0),),
                           num_heads=(4, 4), mlp_ratio=(2, 2, 1), img_scale=(1.0, 1.0), patch_size=(12, 16)),
    "timm_davit": _timm("davit_tiny", 64, depths=(1, 1), embed_dims=(16, 32), num_heads=(2, 4)),
    "timm_deit_distilled": _timm("deit_tiny_distilled_patch16_224", **VIT),
    "timm_densenet": _timm("densenet121", block_config=(2, 2), growth_rate=8),
    "timm_dla": _timm("dla34", channels=(8, 8, 16, 16, 24, 32), levels=(1, 1, 1, 1, 1, 1)),
    "timm_edgenext": _timm("edgenext_xx_small", 64, depths=(1, 1, 1, 2), dims=(8, 16, 24, 32)),
    "timm_efficientformer": _timm("efficientformer_l1", 224, depths=(1, 1, 1, 2), embed_dims=(8, 16, 24, 32)),
    "timm_efficientnet": _timm("efficientnet_lite0"),
    "timm_efficientvit": _timm("efficientvit_b0", 64),
    "timm_eva": _timm("eva02_tiny_patch14_224", img_size=32, patch_size=8, embed_dim=32, depth=2, num_heads=4),
    "timm_fastvit": _timm("fastvit_t8", 64, layers=(1, 1, 1, 1), embed_dims=(48, 48, 48, 48)),
    "timm_ghostnet": _timm("ghostnet_050"),
    "timm_hardcorenas": _timm("hardcorenas_a"),
    "timm_hgnet": _timm("hgnetv2_b0"),
    "timm_hrnet": _timm("hrnet_w18_small", 64),
    "timm_inception_next": _timm("inception_next_tiny", depths=(1, 1, 1, 1), dims=(8, 16, 24, 32)),
    "timm_lambda_resnet": _timm("lambda_resnet26rpt_256", 64, img_size=64),
    "timm_levit": _timm("levit_128s", 64, img_size=64, embed_dim=(16, 32, 48), num_heads=(2, 4, 4), depth=(1, 1, 1),
                        key_dim=8),
    "timm_maxvit": _timm("maxvit_pico_rw_256", 64, img_size=64, depths=(1, 1, 1, 1), embed_dim=(32, 32, 32, 32)),
    "timm_mixer": _class("mlp_mixer.MlpMixer", img_size=32, patch_size=8, embed_dim=32, num_blocks=2),
    "timm_mnasnet": _timm("mnasnet_050"),
    "timm_mobilenetv3": _timm("mobilenetv3_small_050"),
    "timm_mobilenetv4": _timm("mobilenetv4_conv_small_050"),
    "timm_mobileone": _timm("mobileone_s0"),
    "timm_mobilevitv2": _timm("mobilevitv2_050", 64),
    "timm_mvit": _mvit,
    "timm_nest": _class("nest.Nest", img_size=32, patch_size=4, num_levels=2, embed_dims=(16, 32),
                        num_heads=(2, 4), depths=(1, 1)),
    "timm_nf_resnet": _timm("nf_regnet_b0"),
    "timm_pit": _timm("pit_ti_224", 64, img_size=64),
    "timm_regnet": _timm("regnety_002"),
    "timm_repvit": _timm("repvit_m0_9"),
    "timm_res2net": _timm("res2net50_26w_4s", layers=(1, 1, 1, 1), base_width=8),
    "timm_resnest": _timm("resnest14d"),
    "timm_resnet": _timm("resnet18", channels=(8, 16, 24, 32)),
    "timm_resnext": _timm("resnext26ts"),
    "timm_rexnet": _timm("rexnet_100"),
    "timm_senet": _timm("seresnet18"),
    "timm_skresnet": _timm("skresnet18"),
    "timm_swin": _timm("swin_tiny_patch4_window7_224", img_size=32, window_size=4, embed_dim=16, depths=(2, 2),
                       num_heads=(2, 4)),
    "timm_swinv2": _timm("swinv2_tiny_window8_256", img_size=32, window_size=4, embed_dim=16, depths=(2, 2),
                         num_heads=(2, 4)),
    "timm_tinyvit": _timm("tiny_vit_5m_224", 64, embed_dims=(16, 24, 32, 48), depths=(1, 1, 1, 1),
                          num_heads=(2, 2, 4, 4), window_sizes=(4, 4, 4, 2)),
    "timm_tnt": _timm("tnt_s_legacy_patch16_224", img_size=32, patch_size=8, embed_dim=32, inner_dim=8, depth=2,
                      num_heads_inner=2, num_heads_outer=4),
    "timm_twins": _timm("twins_svt_small", 64, img_size=64, embed_dims=(8, 16, 24, 32), depths=(1, 1, 1, 1),
                        num_heads=(1, 2, 2, 4), wss=(4, 4, 4, 2)),
    "timm_visformer": _timm("visformer_tiny", 64, img_size=64, depth=(1, 1, 1)),
    "timm_vit": _timm("vit_tiny_patch16_224", **VIT),
    "timm_vit_registers": _timm("vit_small_patch14_reg4_dinov2", **VIT),
    "timm_volo": _class("volo.VOLO", 64, img_size=64, layers=(1, 1, 1, 1), embed_dims=(16, 32, 32, 32),
                        num_heads=(2, 4, 4, 4), mlp_ratio=2),
    "timm_xcit": _timm("xcit_nano_12_p16_224", 32, img_size=32, embed_dim=32, depth=2, num_heads=4),
}  # fmt: skip
