"""Encoder-decoders of transformers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from tests.zoo.entry import Built, mask, sequences, tokens, transformers

BART = {
    "vocab_size": 99,
    "d_model": 32,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 48,
    "decoder_ffn_dim": 48,
    "max_position_embeddings": 64,
}
T5 = {"vocab_size": 99, "d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 2, "num_heads": 4,
      "decoder_start_token_id": 0}  # fmt: skip


def _kept() -> tuple[tuple[Any, ...], dict[str, torch.Tensor]]:
    """A mask that keeps all: where LongT5 masks all keys of a query, it adds -1e10 to their scores, and what float32
    then rounds away float64 does not."""
    args, kwargs = sequences(16)()
    return args, {**kwargs, "attention_mask": torch.ones(2, 16, dtype=torch.int64)}


def _with_decoder_mask() -> tuple[tuple[Any, ...], dict[str, torch.Tensor]]:
    """Without one, FSMT looks for padding in the tokens."""
    args, kwargs = sequences()()
    return args, {**kwargs, "decoder_attention_mask": mask(2, 7)}


SEQ2SEQ: dict[str, Callable[[], Built]] = {
    "bart": transformers("BartForConditionalGeneration", sequences(), **BART),
    "bigbird_pegasus": transformers("BigBirdPegasusModel", sequences(), **BART, attention_type="original_full"),
    "blenderbot": transformers("BlenderbotModel", sequences(), **BART),
    "blenderbot_small": transformers("BlenderbotSmallModel", sequences(), **BART),
    "fsmt": transformers("FSMTModel", _with_decoder_mask, **{**BART, "langs": ["en", "de"], "src_vocab_size": 99,
                                                       "tgt_vocab_size": 99}),
    "led": transformers("LEDModel", sequences(16, masked=False), **BART, attention_window=[8, 8],
                        max_encoder_position_embeddings=64, max_decoder_position_embeddings=64),
    "long_t5": transformers("LongT5Model", _kept, **T5, local_radius=3),
    # Its mask adds -1e10: where a query sees masked keys only, float32 forgets the scores and float64 does not.
    "long_t5_global": transformers("LongT5Model", sequences(16, padding=0), **T5, local_radius=3,
                                   encoder_attention_type="transient-global", global_block_size=4),
    "m2m_100": transformers("M2M100Model", sequences(), **BART),
    "marian": transformers("MarianMTModel", sequences(), **BART, pad_token_id=0, decoder_start_token_id=0),
    "mbart": transformers("MBartModel", sequences(), **BART),
    "mt5": transformers("MT5Model", sequences(), **T5),
    "mvp": transformers("MvpModel", sequences(), **BART),
    "nllb_moe": transformers("NllbMoeModel", sequences(), **BART, num_experts=4, encoder_sparse_step=2,
                             decoder_sparse_step=2, expert_capacity=8),
    "pegasus": transformers("PegasusModel", sequences(), **BART),
    "pegasus_x": transformers("PegasusXModel", sequences(16), **BART, block_size=4, num_global_tokens=4),
    "plbart": transformers("PLBartModel", sequences(), **BART),
    "prophetnet": transformers("ProphetNetModel", sequences(), vocab_size=99, hidden_size=32, num_encoder_layers=2,
                               num_decoder_layers=2, num_encoder_attention_heads=4, num_decoder_attention_heads=4,
                               encoder_ffn_dim=48, decoder_ffn_dim=48, max_position_embeddings=64),
    "switch_transformers": transformers("SwitchTransformersModel", sequences(), **T5, num_experts=4,
                                        num_sparse_encoder_layers=1, num_sparse_decoder_layers=1, expert_capacity=16),
    "t5": transformers("T5ForConditionalGeneration", sequences(), **T5),
    "t5_encoder": transformers("T5EncoderModel", tokens(), **T5, feed_forward_proj="gated-gelu"),
    "umt5": transformers("UMT5Model", sequences(), **T5),
}  # fmt: skip
