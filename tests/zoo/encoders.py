"""Text encoders of transformers."""

from __future__ import annotations

from collections.abc import Callable

import torch

from tests.zoo.entry import Built, floats, ids, mask, tokens, transformers

# What most configurations call it.
SMALL = {
    "vocab_size": 99,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "max_position_embeddings": 64,
}

SPECIAL = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "cls_token_id": 1, "sep_token_id": 2}


def _with_types() -> tuple[tuple[torch.Tensor, ...], dict[str, torch.Tensor]]:
    types = torch.zeros(2, 12, dtype=torch.int64)
    types[:, 7:] = 1
    return (ids(2, 12),), {"attention_mask": mask(2, 12), "token_type_ids": types}


def _boxes() -> tuple[tuple[torch.Tensor, ...], dict[str, torch.Tensor]]:
    corners = torch.randint(0, 400, (2, 12, 4), generator=torch.Generator().manual_seed(0))
    corners[..., 2:] += 500  # right and below the first corner
    return (), {"input_ids": ids(2, 12), "bbox": corners, "attention_mask": mask(2, 12)}


def _characters() -> tuple[tuple[torch.Tensor, ...], dict[str, torch.Tensor]]:
    return (ids(2, 64, high=2000),), {"attention_mask": mask(2, 64)}


def _additive() -> tuple[tuple[torch.Tensor, ...], dict[str, torch.Tensor]]:
    """A mask that is added to the scores: the model cannot use the one that it makes from zeros and ones."""
    return (ids(2, 16),), {"attention_mask": floats(2, 1, 1, 16)}


def _perceiver() -> tuple[tuple[torch.Tensor, ...], dict[str, torch.Tensor]]:
    return (ids(2, 20),), {"attention_mask": mask(2, 20)}


ENCODERS: dict[str, Callable[[], Built]] = {
    "albert": transformers("AlbertModel", tokens(), **SMALL, embedding_size=16),
    "bert": transformers("BertModel", _with_types, **SMALL),
    "bert_eager": transformers("BertModel", tokens(), **SMALL, attn_implementation="eager"),
    "bert_masked_lm": transformers("BertForMaskedLM", tokens(), **SMALL),
    "bert_questions": transformers("BertForQuestionAnswering", _with_types, **SMALL),
    "big_bird": transformers("BigBirdModel", tokens(), **SMALL, attention_type="original_full"),
    "big_bird_sparse": transformers(
        "BigBirdModel", tokens(64), **SMALL, attention_type="block_sparse", block_size=4, num_random_blocks=2
    ),
    "camembert": transformers("CamembertModel", tokens(), **SMALL),
    "canine": transformers(
        "CanineModel", _characters, **SMALL, downsampling_rate=4, num_hash_buckets=128, local_transformer_stride=16
    ),
    "conv_bert": transformers("ConvBertModel", tokens(), **SMALL, embedding_size=32),
    "deberta": transformers(
        "DebertaModel", tokens(), **SMALL, relative_attention=True, pos_att_type=["p2c", "c2p"], type_vocab_size=0
    ),
    "deberta_v2": transformers(
        "DebertaV2Model", tokens(), **SMALL, relative_attention=True, pos_att_type=["p2c", "c2p"], position_buckets=8,
        norm_rel_ebd="layer_norm", share_att_key=True,
    ),
    "distilbert": transformers(
        "DistilBertModel", tokens(), vocab_size=99, dim=32, n_layers=2, n_heads=4, hidden_dim=48
    ),
    "electra": transformers("ElectraModel", tokens(), **SMALL, embedding_size=16),
    "ernie": transformers("ErnieModel", tokens(), **SMALL),
    "esm": transformers("EsmModel", tokens(), **SMALL, pad_token_id=1, position_embedding_type="rotary"),
    "euro_bert": transformers("EuroBertModel", tokens(), **SMALL, **SPECIAL),
    "flaubert": transformers("FlaubertModel", tokens(), vocab_size=99, emb_dim=32, n_layers=2, n_heads=4),
    "fnet": transformers("FNetModel", tokens(masked=False), **SMALL, tpu_short_seq_length=12),
    "funnel": transformers(
        "FunnelModel", tokens(), vocab_size=99, block_sizes=[1, 1], d_model=32, n_head=4, d_head=8, d_inner=48
    ),
    "ibert": transformers("IBertModel", tokens(), **SMALL, quant_mode=False),
    "layoutlm": transformers("LayoutLMModel", _boxes, **SMALL),
    "lilt": transformers("LiltModel", _boxes, **{**SMALL, "hidden_size": 48}),
    "longformer": transformers("LongformerModel", tokens(16, masked=False), **SMALL, attention_window=[8, 8]),
    "luke": transformers("LukeModel", tokens(), **SMALL, entity_vocab_size=20, entity_emb_size=16),
    "mega_bert": transformers("MegatronBertModel", tokens(), **SMALL),
    "mobile_bert": transformers(
        "MobileBertModel", tokens(), **SMALL, embedding_size=32, intra_bottleneck_size=16, true_hidden_size=16
    ),
    "modern_bert": transformers(
        "ModernBertModel", tokens(), **SMALL, global_attn_every_n_layers=2, local_attention=8, **SPECIAL
    ),
    "mpnet": transformers("MPNetModel", tokens(), **SMALL),
    "mra": transformers("MraModel", tokens(masked=False), **SMALL),
    "nomic_bert": transformers("NomicBertModel", tokens(), **SMALL),
    "nystromformer": transformers(
        "NystromformerModel", _additive, **SMALL, num_landmarks=4, segment_means_seq_len=16,
        conv_kernel_size=3,
    ),
    "perceiver": transformers(
        "PerceiverForMaskedLM", _perceiver, vocab_size=99, d_model=32, d_latents=32, num_latents=8, num_blocks=1,
        num_self_attends_per_block=2, num_self_attention_heads=4, num_cross_attention_heads=4,
        max_position_embeddings=20, qk_channels=32, v_channels=32,
    ),
    "reformer": transformers(
        "ReformerModel", tokens(16), vocab_size=99, hidden_size=32, num_attention_heads=4, attention_head_size=8,
        attn_layers=["local", "local"], local_attn_chunk_length=4, feed_forward_size=48, axial_pos_shape=[4, 4],
        axial_pos_embds_dim=[16, 16], max_position_embeddings=16, is_decoder=False,
    ),
    "rembert": transformers("RemBertModel", tokens(), **SMALL, input_embedding_size=16),
    "roberta": transformers("RobertaModel", tokens(), **SMALL),
    "roberta_tokens": transformers("RobertaForTokenClassification", tokens(), **SMALL),
    "roberta_prenorm": transformers("RobertaPreLayerNormModel", tokens(), **SMALL),
    "roc_bert": transformers("RoCBertModel", tokens(), **SMALL, enable_pronunciation=True, enable_shape=True,
                             pronunciation_vocab_size=20, pronunciation_embed_dim=8, shape_vocab_size=20,
                             shape_embed_dim=8),
    "roformer": transformers("RoFormerModel", tokens(), **SMALL, embedding_size=32),
    "splinter": transformers("SplinterModel", tokens(), **SMALL),
    "squeeze_bert": transformers("SqueezeBertModel", tokens(), **SMALL, embedding_size=32),
    "xlm": transformers("XLMModel", tokens(), vocab_size=99, emb_dim=32, n_layers=2, n_heads=4),
    "xlm_roberta": transformers("XLMRobertaModel", tokens(), **SMALL),
    "xlm_roberta_xl": transformers("XLMRobertaXLModel", tokens(), **SMALL),
    "xlnet": transformers("XLNetModel", tokens(), vocab_size=99, d_model=32, n_layer=2, n_head=4, d_inner=48),
    "xmod": transformers("XmodModel", tokens(), **SMALL, languages=["en_XX"], default_language="en_XX"),
    "yoso": transformers("YosoModel", tokens(masked=False), **SMALL, use_expectation=True),
}  # fmt: skip
