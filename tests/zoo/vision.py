"""Vision models of transformers: classifiers, dense prediction, detection, image and text."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from tests.zoo.encoders import SMALL
from tests.zoo.entry import Built, floats, ids, image, mask, transformers

VIT = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "image_size": 32,
    "patch_size": 8,
    "num_labels": 5,
}
TEXT = {**SMALL, "eos_token_id": 98, "bos_token_id": 1, "pad_token_id": 0, "projection_dim": 16}
STAGES = {"depths": [1, 1], "hidden_sizes": [16, 32], "num_labels": 5}
SWIN = {
    "image_size": 32,
    "patch_size": 4,
    "embed_dim": 16,
    "depths": [2, 2],
    "num_heads": [2, 4],
    "window_size": 4,
    "num_labels": 5,
}


def _small_resnet() -> dict[str, Any]:
    return {"model_type": "resnet", "embedding_size": 8, "hidden_sizes": [8, 16, 24, 32], "depths": [1, 1, 1, 1],
            "layer_type": "basic", "out_features": ["stage1", "stage2", "stage3", "stage4"]}  # fmt: skip


def _image_and_text() -> tuple[tuple[Any, ...], dict[str, torch.Tensor]]:
    words = ids(2, 8)
    words[:, -1] = 98  # the end of the text, which CLIP pools
    return (), {"input_ids": words, "pixel_values": floats(2, 3, 32, 32), "attention_mask": torch.ones(2, 8).long()}


def _question() -> tuple[tuple[Any, ...], dict[str, torch.Tensor]]:
    return (), {"input_ids": ids(2, 8), "attention_mask": mask(2, 8), "pixel_values": floats(2, 3, 32, 32)}


def _video() -> tuple[tuple[Any, ...], dict[str, torch.Tensor]]:
    return (), {"pixel_values": floats(1, 4, 3, 32, 32)}


def _backbone(name: str, **settings: Any) -> Any:
    """A configuration object: for models whose configuration holds that of another."""
    import transformers as library

    return getattr(library, name)(**settings)


def _on_backbone(name: str, make_backbone: Callable[[], Any], **config: Any) -> Callable[[], Built]:
    """A decoder head over a backbone, whose configuration is made when it is built."""
    return lambda: transformers(name, image(64), **config, backbone_config=make_backbone())()


def _resnet_backbone() -> Any:
    settings = _small_resnet()
    settings.pop("model_type")
    return _backbone("ResNetConfig", **settings)


def _convnext_backbone() -> Any:
    return _backbone("ConvNextConfig", depths=[1, 1, 1, 1], hidden_sizes=[8, 16, 24, 32],
                     out_features=["stage1", "stage2", "stage3", "stage4"])  # fmt: skip


DETR = {
    "d_model": 32,
    "encoder_layers": 1,
    "decoder_layers": 1,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 48,
    "decoder_ffn_dim": 48,
    "num_queries": 5,
    "num_labels": 5,
    "use_timm_backbone": False,
    "use_pretrained_backbone": False,
    "backbone": None,
}

VISION: dict[str, Callable[[], Built]] = {
    "beit": transformers("BeitForImageClassification", image(), **VIT, use_relative_position_bias=True),
    "bit": transformers("BitForImageClassification", image(), embedding_size=8, hidden_sizes=[8, 16, 24, 32],
                        depths=[1, 1, 1, 1], num_groups=4, num_labels=5),
    "convnext": transformers("ConvNextForImageClassification", image(), **STAGES, num_stages=2),
    "convnextv2": transformers("ConvNextV2ForImageClassification", image(), **STAGES, num_stages=2),
    "cvt": transformers("CvtForImageClassification", image(), embed_dim=[8, 16, 24], depth=[1, 2, 3],
                        num_heads=[1, 2, 3], num_labels=5),
    "deit": transformers("DeiTForImageClassification", image(), **VIT),
    "dinov2": transformers("Dinov2ForImageClassification", image(), **VIT),
    "dinov2_registers": transformers("Dinov2WithRegistersModel", image(), **VIT),
    "dinov3_convnext": transformers("DINOv3ConvNextModel", image(), hidden_sizes=[8, 16, 24, 32], depths=[1, 1, 1, 1]),
    "dinov3_vit": transformers("DINOv3ViTModel", image(), **VIT, num_register_tokens=2),
    "donut_swin": transformers("DonutSwinModel", image(), **SWIN),
    "efficientnet": transformers("EfficientNetForImageClassification", image(), width_coefficient=0.25,
                                 depth_coefficient=0.5, hidden_dim=320, num_labels=5, image_size=32),
    "focalnet": transformers("FocalNetForImageClassification", image(), image_size=32, patch_size=4, embed_dim=16,
                             depths=[1, 1], focal_levels=[2, 2], focal_windows=[3, 3], hidden_sizes=[16, 32],
                             num_labels=5),
    "hiera": transformers("HieraForImageClassification", image(), image_size=[32, 32], patch_size=[7, 7],
                          embed_dim=16, depths=[1, 1, 1], num_heads=[1, 2, 4], masked_unit_size=[4, 4],
                          query_stride=[2, 2], num_query_pool=2, num_labels=5),
    "ijepa": transformers("IJepaForImageClassification", image(), **VIT),
    "levit": transformers("LevitForImageClassification", image(64), image_size=64, hidden_sizes=[16, 32, 48],
                          num_attention_heads=[2, 4, 4], depths=[1, 1, 1], key_dim=[8, 8, 8], num_labels=5,
                          down_ops=[["Subsample", 8, 2, 2, 2, 2], ["Subsample", 8, 4, 2, 2, 2]]),
    "mobilenet_v1": transformers("MobileNetV1ForImageClassification", image(), depth_multiplier=0.25, num_labels=5),
    "mobilenet_v2_small": transformers("MobileNetV2ForImageClassification", image(), depth_multiplier=0.25,
                                       num_labels=5),
    "mobilevit": transformers("MobileViTForImageClassification", image(64), hidden_sizes=[16, 24, 32],
                              neck_hidden_sizes=[8, 12, 16, 16, 24, 32, 48], num_attention_heads=4, image_size=64,
                              num_labels=5),
    "mobilevit_v2": transformers("MobileViTV2ForImageClassification", image(64), width_multiplier=0.25, image_size=64,
                                 n_attn_blocks=[1, 1, 1], num_labels=5),
    "poolformer": transformers("PoolFormerForImageClassification", image(), **STAGES, patch_sizes=[7, 3],
                               strides=[4, 2], padding=[2, 1], num_encoder_blocks=2),
    "pvt": transformers("PvtForImageClassification", image(64), image_size=64, depths=[1, 1, 1, 1],
                        hidden_sizes=[8, 16, 24, 32], num_attention_heads=[1, 2, 2, 4], mlp_ratios=[2, 2, 2, 2],
                        num_labels=5),
    "pvt_v2": transformers("PvtV2ForImageClassification", image(64), image_size=64, depths=[1, 1, 1, 1],
                           hidden_sizes=[8, 16, 24, 32], num_attention_heads=[1, 2, 2, 4], mlp_ratios=[2, 2, 2, 2],
                           num_labels=5),
    "regnet": transformers("RegNetForImageClassification", image(), embedding_size=8, hidden_sizes=[8, 16, 24, 32],
                           depths=[1, 1, 1, 1], groups_width=4, num_labels=5),
    "resnet_basic": transformers("ResNetForImageClassification", image(), embedding_size=8, num_labels=5,
                                 hidden_sizes=[8, 16], depths=[1, 1], layer_type="basic"),
    "resnet_bottleneck": transformers("ResNetForImageClassification", image(), embedding_size=8, num_labels=5,
                                      hidden_sizes=[16, 32], depths=[2, 1], layer_type="bottleneck"),
    "swiftformer": transformers("SwiftFormerForImageClassification", image(64), image_size=64, depths=[1, 1, 1, 1],
                                embed_dims=[8, 16, 24, 32], num_labels=5),
    "swin": transformers("SwinForImageClassification", image(), **SWIN),
    "swinv2": transformers("Swinv2ForImageClassification", image(), **SWIN),
    "textnet": transformers("TextNetForImageClassification", image(), num_labels=5, stem_out_channels=8,
                            hidden_sizes=[8, 8, 16, 16, 16]),
    "timesformer": transformers("TimesformerForVideoClassification", _video, **VIT, num_frames=4),
    "video_mae": transformers("VideoMAEForVideoClassification", _video, **VIT, num_frames=4, tubelet_size=2),
    "vit": transformers("ViTForImageClassification", image(), **VIT),
    "vit_det": transformers("VitDetModel", image(), hidden_size=32, num_hidden_layers=2, num_attention_heads=4,
                            image_size=32, patch_size=8, window_size=2, window_block_indices=[0],
                            use_relative_position_embeddings=True, pretrain_image_size=32),
    "vit_msn": transformers("ViTMSNForImageClassification", image(), **VIT),
    "vivit": transformers("VivitForVideoClassification", _video, **VIT, num_frames=4, tubelet_size=[2, 8, 8]),
}  # fmt: skip

DENSE: dict[str, Callable[[], Built]] = {
    "beit_segmentation": transformers("BeitForSemanticSegmentation", image(64), **{
        **VIT, "image_size": 64, "patch_size": 16, "num_hidden_layers": 4}, out_indices=[1, 2, 3, 4],
        use_auxiliary_head=False, pool_scales=[1, 2]),
    "depth_anything": _on_backbone("DepthAnythingForDepthEstimation", lambda: _backbone(
        "Dinov2Config", **{**VIT, "image_size": 64, "patch_size": 16, "num_hidden_layers": 4, "num_labels": 2},
        out_features=["stage1", "stage2", "stage3", "stage4"], reshape_hidden_states=False, apply_layernorm=True),
        patch_size=16, reassemble_hidden_size=32, neck_hidden_sizes=[8, 16, 24, 32], fusion_hidden_size=16,
        head_hidden_size=8),
    "dpt_depth": transformers("DPTForDepthEstimation", image(64), **{**VIT, "image_size": 64, "patch_size": 16,
        "num_hidden_layers": 4}, backbone_out_indices=[0, 1, 2, 3], neck_hidden_sizes=[8, 16, 24, 32],
        fusion_hidden_size=16, is_hybrid=False),
    "dpt_segmentation": transformers("DPTForSemanticSegmentation", image(64), **{**VIT, "image_size": 64,
        "patch_size": 16, "num_hidden_layers": 4}, backbone_out_indices=[0, 1, 2, 3],
        neck_hidden_sizes=[8, 16, 24, 32], fusion_hidden_size=16, is_hybrid=False),
    "glpn": transformers("GLPNForDepthEstimation", image(64), num_encoder_blocks=4, depths=[1, 1, 1, 1],
                         hidden_sizes=[8, 16, 24, 32], num_attention_heads=[1, 2, 2, 4], mlp_ratios=[2, 2, 2, 2],
                         decoder_hidden_size=16),
    "mask2former": transformers("Mask2FormerModel", image(64), feature_size=32, mask_feature_size=32,
        hidden_dim=32, encoder_feedforward_dim=32, encoder_layers=1, decoder_layers=3, num_attention_heads=2,
        dim_feedforward=32, num_queries=5, num_labels=5, use_pretrained_backbone=False, use_timm_backbone=False,
        backbone=None, backbone_config={"model_type": "swin", "image_size": 64, "embed_dim": 8, "depths": [1, 1, 1, 1],
                         "num_heads": [1, 2, 2, 4], "window_size": 4,
                         "out_features": ["stage1", "stage2", "stage3", "stage4"]}),
    "maskformer": transformers("MaskFormerModel", image(64), fpn_feature_size=32,
        mask_feature_size=32, num_labels=5, backbone_config={
            "model_type": "swin", "image_size": 64, "embed_dim": 8, "depths": [1, 1, 1, 1], "num_heads": [1, 2, 2, 4],
            "window_size": 4, "out_features": ["stage1", "stage2", "stage3", "stage4"]},
        decoder_config={"model_type": "detr", **DETR}),
    "mobilenet_v2_segmentation": transformers("MobileNetV2ForSemanticSegmentation", image(64), depth_multiplier=0.25,
                                              num_labels=5),
    "mobilevit_segmentation": transformers("MobileViTForSemanticSegmentation", image(64), hidden_sizes=[16, 24, 32],
        neck_hidden_sizes=[8, 12, 16, 16, 24, 32, 48], num_attention_heads=4, image_size=64, num_labels=5,
        aspp_out_channels=16),
    "sam_encoder": transformers("SamVisionModel", image(64), hidden_size=32, num_hidden_layers=2,
                                num_attention_heads=4, image_size=64, patch_size=16, window_size=2,
                                global_attn_indexes=[1], output_channels=16, mlp_dim=48),
    "segformer": transformers("SegformerForSemanticSegmentation", image(64), depths=[1, 1, 1, 1],
                              hidden_sizes=[8, 16, 24, 32], num_attention_heads=[1, 2, 2, 4], mlp_ratios=[2, 2, 2, 2],
                              decoder_hidden_size=16, num_labels=5),
    "swin2sr": transformers("Swin2SRForImageSuperResolution", image(16), image_size=16, patch_size=1, embed_dim=16,
                            depths=[2], num_heads=[2], window_size=4, upscale=2),
    "upernet_convnext": _on_backbone("UperNetForSemanticSegmentation", _convnext_backbone, num_labels=5,
                                     hidden_size=16, use_auxiliary_head=False, pool_scales=[1, 2]),
    "vitmatte": lambda: transformers("VitMatteForImageMatting", image(64, 4), hidden_size=32, backbone_config=_backbone(
        "VitDetConfig", hidden_size=32, num_hidden_layers=2, num_attention_heads=4, image_size=64, patch_size=16,
        num_channels=4, window_size=2, window_block_indices=[0], out_features=["stage2"], pretrain_image_size=64),
        convstream_hidden_sizes=[8, 16, 24], fusion_hidden_sizes=[32, 16, 8, 4])(),
    "zoedepth": _on_backbone("ZoeDepthForDepthEstimation", lambda: _backbone(
        "BeitConfig", **{**VIT, "image_size": 64, "patch_size": 16, "num_hidden_layers": 4, "num_labels": 2},
        out_features=["stage1", "stage2", "stage3", "stage4"], reshape_hidden_states=False,
        use_relative_position_bias=True),
        neck_hidden_sizes=[8, 16, 24, 32], fusion_hidden_size=16, bottleneck_features=16, num_relative_features=8,
        reassemble_factors=[4, 2, 1, 0.5], add_projection=False, readout_type="project",
        bin_configurations=[{"n_bins": 8, "min_depth": 0.001, "max_depth": 10.0, "name": "nyu"}],
        bin_embedding_dim=16, num_attractors=[4, 2, 2, 1]),
}  # fmt: skip

DETECTION: dict[str, Callable[[], Built]] = {
    "conditional_detr": _on_backbone("ConditionalDetrForObjectDetection", _resnet_backbone, **DETR),
    "dab_detr": _on_backbone("DabDetrForObjectDetection", _resnet_backbone, **{**DETR, "hidden_size": 32}),
    "deformable_detr": _on_backbone("DeformableDetrForObjectDetection", _resnet_backbone,
                                    **{**DETR, "decoder_layers": 2}),
    "detr": _on_backbone("DetrForObjectDetection", _resnet_backbone, **DETR),
    "rt_detr": _on_backbone("RTDetrForObjectDetection", lambda: _backbone(
        "RTDetrResNetConfig", embedding_size=8, hidden_sizes=[8, 16, 24, 32], depths=[1, 1, 1, 1], layer_type="basic",
        out_features=["stage2", "stage3", "stage4"]),
        encoder_hidden_dim=32, encoder_in_channels=[16, 24, 32], encoder_ffn_dim=32, encoder_attention_heads=4,
        d_model=32, num_queries=5, decoder_in_channels=[32, 32, 32], decoder_ffn_dim=32, decoder_layers=2,
        decoder_attention_heads=4, num_labels=5, anchor_image_size=[64, 64]),
    "yolos": transformers("YolosForObjectDetection", image(), **{**VIT, "image_size": [32, 32]},
                          num_detection_tokens=5),
}  # fmt: skip

MULTIMODAL: dict[str, Callable[[], Built]] = {
    "align_vision": transformers("AlignVisionModel", image(), width_coefficient=0.25, depth_coefficient=0.5,
                                 hidden_dim=80, image_size=32),
    "blip": transformers("BlipForImageTextRetrieval", _question, text_config={**TEXT, "encoder_hidden_size": 32},
                         vision_config=VIT, projection_dim=16, image_text_hidden_size=16),
    "chinese_clip_vision": transformers("ChineseCLIPVisionModel", image(), **VIT),
    "clip": transformers("CLIPModel", _image_and_text, text_config=TEXT, vision_config=VIT, projection_dim=16),
    "clip_seg": transformers("CLIPSegVisionModel", image(), **VIT),
    "groupvit_text": transformers("GroupViTTextModel", lambda: ((ids(2, 8),), {}), **TEXT),
    "owlvit_vision": transformers("OwlViTVisionModel", image(), **VIT),
    "siglip": transformers("SiglipModel", _image_and_text, text_config=TEXT, vision_config=VIT),
    "vilt": transformers("ViltModel", _question, **{**SMALL, **VIT}),
}  # fmt: skip
