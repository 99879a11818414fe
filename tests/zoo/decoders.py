"""Decoders of transformers: attention with every kind of position, mixtures of experts, state spaces."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tests.zoo.encoders import SMALL
from tests.zoo.entry import Built, tokens, transformers

ROTARY = {**SMALL, "num_key_value_heads": 2, "head_dim": 8, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
EXPERTS = {
    **ROTARY,
    "num_experts": 4,
    "num_local_experts": 4,
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 24,
}


def _lm(name: str, **config: Any) -> Callable[[], Built]:
    return transformers(name, tokens(), **{**ROTARY, **config})


def _experts(name: str, **config: Any) -> Callable[[], Built]:
    return transformers(name, tokens(), **{**EXPERTS, **config})


DECODERS: dict[str, Callable[[], Built]] = {
    "arcee": _lm("ArceeForCausalLM"),
    "bio_gpt": transformers("BioGptForCausalLM", tokens(), **SMALL),
    "bloom": transformers("BloomForCausalLM", tokens(), vocab_size=99, hidden_size=32, n_layer=2, n_head=4),
    "codegen": transformers("CodeGenForCausalLM", tokens(), vocab_size=99, n_embd=32, n_layer=2, n_head=4,
                            rotary_dim=4),
    "cohere": _lm("CohereForCausalLM"),
    "cohere2": _lm("Cohere2ForCausalLM", sliding_window=4),
    "ctrl": transformers("CTRLModel", tokens(), vocab_size=99, n_embd=32, n_layer=2, n_head=4, dff=48),
    "diff_llama": _lm("DiffLlamaForCausalLM"),
    "ernie4_5": _lm("Ernie4_5ForCausalLM"),
    "exaone4": _lm("Exaone4ForCausalLM", sliding_window=4),
    "falcon": transformers("FalconForCausalLM", tokens(), vocab_size=99, hidden_size=32, num_hidden_layers=2,
                           num_attention_heads=4),
    "falcon_alibi": transformers("FalconForCausalLM", tokens(), vocab_size=99, hidden_size=32, num_hidden_layers=2,
                                 num_attention_heads=4, alibi=True),
    "gemma": _lm("GemmaForCausalLM"),
    "gemma2": _lm("Gemma2ForCausalLM", sliding_window=4, query_pre_attn_scalar=8),
    "gemma3": _lm("Gemma3ForCausalLM", sliding_window=4, query_pre_attn_scalar=8, sliding_window_pattern=2),
    "glm": _lm("GlmForCausalLM"),
    "glm4": _lm("Glm4ForCausalLM"),
    "gpt2": transformers("GPT2LMHeadModel", tokens(), vocab_size=99, n_embd=32, n_layer=2, n_head=4, n_positions=64),
    "gpt2_eager": transformers("GPT2LMHeadModel", tokens(), vocab_size=99, n_embd=32, n_layer=2, n_head=4,
                               n_positions=64, attn_implementation="eager"),
    "gpt_bigcode": transformers("GPTBigCodeForCausalLM", tokens(), vocab_size=99, n_embd=32, n_layer=2, n_head=4,
                                n_positions=64),
    "gpt_neo": transformers("GPTNeoForCausalLM", tokens(), vocab_size=99, hidden_size=32, num_layers=2, num_heads=4,
                            attention_types=[[["global", "local"], 1]], window_size=4, max_position_embeddings=64),
    "gpt_neox": transformers("GPTNeoXForCausalLM", tokens(), **SMALL),
    "gptj": transformers("GPTJForCausalLM", tokens(), vocab_size=99, n_embd=32, n_layer=2, n_head=4, rotary_dim=4,
                         n_positions=64),
    "granite": _lm("GraniteForCausalLM", attention_multiplier=0.3, residual_multiplier=0.5, logits_scaling=2.0),
    "helium": _lm("HeliumForCausalLM"),
    "image_gpt": transformers("ImageGPTModel", tokens(masked=False), vocab_size=99, n_embd=32, n_layer=2, n_head=4,
                              n_positions=64),
    "lfm2": _lm("Lfm2ForCausalLM", layer_types=["conv", "full_attention"]),
    "llama": _lm("LlamaForCausalLM"),
    "llama_eager": _lm("LlamaForCausalLM", attn_implementation="eager"),
    "llama_rope_scaled": _lm("LlamaForCausalLM", rope_parameters={
        "rope_type": "llama3", "rope_theta": 10000.0, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 16}),
    "llama_classifier": _lm("LlamaForSequenceClassification"),
    "mistral": _lm("MistralForCausalLM", sliding_window=4),
    "mpt": transformers("MptForCausalLM", tokens(), vocab_size=99, d_model=32, n_layers=2, n_heads=4, max_seq_len=64),
    "nemotron": _lm("NemotronForCausalLM"),
    "olmo": _lm("OlmoForCausalLM", clip_qkv=3.0),
    "olmo2": _lm("Olmo2ForCausalLM"),
    "olmo3": _lm("Olmo3ForCausalLM", sliding_window=4),
    "openai_gpt": transformers("OpenAIGPTLMHeadModel", tokens(masked=False), vocab_size=99, n_embd=32, n_layer=2,
                               n_head=4, n_positions=64),
    "opt": transformers("OPTForCausalLM", tokens(), **SMALL, ffn_dim=48, word_embed_proj_dim=32),
    "persimmon": _lm("PersimmonForCausalLM"),
    "phi": _lm("PhiForCausalLM"),
    "phi3": _lm("Phi3ForCausalLM", sliding_window=4),
    "qwen2": _lm("Qwen2ForCausalLM"),
    "qwen3": _lm("Qwen3ForCausalLM"),
    "seed_oss": _lm("SeedOssForCausalLM"),
    "smollm3": _lm("SmolLM3ForCausalLM"),
    "stablelm": _lm("StableLmForCausalLM"),
    "starcoder2": _lm("Starcoder2ForCausalLM"),
    "xglm": transformers("XGLMForCausalLM", tokens(), vocab_size=99, d_model=32, num_layers=2, attention_heads=4,
                         ffn_dim=48),
}  # fmt: skip

EXPERT_MODELS: dict[str, Callable[[], Built]] = {
    "dbrx": transformers("DbrxForCausalLM", tokens(), vocab_size=99, d_model=32, n_layers=2, n_heads=4,
                         attn_config={"kv_n_heads": 2, "clip_qkv": 8.0, "rope_theta": 10000.0},
                         ffn_config={"ffn_hidden_size": 48, "moe_num_experts": 4, "moe_top_k": 2, "hidden_size": 32}),
    "deepseek_v2": _experts("DeepseekV2ForCausalLM", q_lora_rank=None, kv_lora_rank=16, qk_rope_head_dim=4,
                            qk_nope_head_dim=8, v_head_dim=8, n_shared_experts=1, topk_group=1, n_group=1,
                            num_key_value_heads=4, first_k_dense_replace=1, topk_method="greedy"),
    "deepseek_v3": _experts("DeepseekV3ForCausalLM", q_lora_rank=16, kv_lora_rank=16, qk_rope_head_dim=4,
                            qk_nope_head_dim=8, v_head_dim=8, n_shared_experts=1, topk_group=1, n_group=2, head_dim=4,
                            num_key_value_heads=4, first_k_dense_replace=1),
    "ernie4_5_moe": _experts("Ernie4_5_MoeForCausalLM", moe_num_experts=4, moe_k=2),
    "gpt_oss": _experts("GptOssForCausalLM", sliding_window=4, attn_implementation="eager"),
    "granite_moe": _experts("GraniteMoeForCausalLM"),
    "jetmoe": _experts("JetMoeForCausalLM", kv_channels=8, num_key_value_heads=2),
    "minimax": _experts("MiniMaxForCausalLM"),
    "mixtral": _experts("MixtralForCausalLM"),
    "mixtral_grouped": _experts("MixtralForCausalLM", experts_implementation="grouped_mm"),
    "mixtral_batched": _experts("MixtralForCausalLM", experts_implementation="batched_mm"),
    "olmoe": _experts("OlmoeForCausalLM"),
    "phimoe": _experts("PhimoeForCausalLM"),
    "qwen2_moe": _experts("Qwen2MoeForCausalLM", shared_expert_intermediate_size=24),
    "qwen3_moe": _experts("Qwen3MoeForCausalLM"),
}  # fmt: skip

STATE_SPACES: dict[str, Callable[[], Built]] = {
    "bamba": _lm("BambaForCausalLM", mamba_n_heads=4, mamba_d_head=16, mamba_n_groups=1, mamba_d_state=8,
                 mamba_chunk_size=4, attn_layer_indices=[1]),
    "falcon_h1": _lm("FalconH1ForCausalLM", mamba_n_heads=4, mamba_d_head=16, mamba_d_ssm=64, mamba_d_state=8,
                     mamba_chunk_size=4, mamba_n_groups=1),
    "falcon_mamba": transformers("FalconMambaForCausalLM", tokens(8, masked=False), vocab_size=99, hidden_size=32,
                                 num_hidden_layers=2, state_size=8),
    "jamba": _experts("JambaForCausalLM", attn_layer_period=2, attn_layer_offset=1, expert_layer_period=2,
                      expert_layer_offset=1, mamba_d_state=8, mamba_dt_rank=4, use_mamba_kernels=False),
    "mamba": transformers("MambaForCausalLM", tokens(8, masked=False), vocab_size=99, hidden_size=32,
                          num_hidden_layers=2, state_size=8),
    "mamba2": transformers("Mamba2ForCausalLM", tokens(8, masked=False), vocab_size=99, hidden_size=32, num_heads=8,
                           head_dim=8, num_hidden_layers=2, state_size=8, n_groups=2, chunk_size=4),
    "recurrent_gemma": _lm("RecurrentGemmaForCausalLM", lru_width=32, attention_window_size=8, num_hidden_layers=3,
                           block_types=["recurrent", "recurrent", "attention"]),
    "rwkv": transformers("RwkvForCausalLM", tokens(8, masked=False), vocab_size=99, hidden_size=32,
                         attention_hidden_size=32, intermediate_size=48, num_hidden_layers=2, context_length=64),
    "qwen3_next": _experts("Qwen3NextForCausalLM", linear_num_key_heads=2, linear_num_value_heads=4,
                           linear_key_head_dim=8, linear_value_head_dim=8,
                           layer_types=["linear_attention", "full_attention"],
                           shared_expert_intermediate_size=24),
    "xlstm": transformers("xLSTMForCausalLM", tokens(8, masked=False), vocab_size=99, hidden_size=32, num_heads=4,
                          num_blocks=2, num_hidden_layers=2, chunk_size=8),
    "zamba2": _lm("Zamba2ForCausalLM", mamba_d_state=8, n_mamba_heads=4, mamba_headdim=16, mamba_ngroups=1,
                  chunk_size=4, layers_block_type=["mamba", "hybrid"], num_mem_blocks=1, adapter_rank=8),
}  # fmt: skip
