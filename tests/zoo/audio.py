"""Audio and time series models of transformers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from tests.zoo.entry import Built, audio, floats, ids, transformers

# Few samples per frame, as real models have many more.
FRAMES = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "conv_dim": [16, 16, 16],
    "conv_stride": [5, 2, 2],
    "conv_kernel": [10, 3, 2],
    "num_conv_pos_embeddings": 8,
    "num_conv_pos_embedding_groups": 4,
    "num_feat_extract_layers": 3,
}
SOUND = audio(2, 800)
SPEECH = {"d_model": 32, "encoder_layers": 2, "decoder_layers": 2, "encoder_attention_heads": 4,
          "decoder_attention_heads": 4, "encoder_ffn_dim": 48, "decoder_ffn_dim": 48, "vocab_size": 99}  # fmt: skip


def _whisper() -> tuple[tuple[Any, ...], dict[str, torch.Tensor]]:
    return (), {"input_features": floats(1, 16, 40), "decoder_input_ids": ids(1, 6)}


def _speech_to_text() -> tuple[tuple[Any, ...], dict[str, torch.Tensor]]:
    return (), {"input_features": floats(1, 40, 16), "decoder_input_ids": ids(1, 6)}


AUDIO: dict[str, Callable[[], Built]] = {
    "ast": transformers("ASTForAudioClassification", audio(1, 48, 16), hidden_size=32, num_hidden_layers=2,
                        num_attention_heads=4, intermediate_size=48, patch_size=8, frequency_stride=8, time_stride=8,
                        max_length=48, num_mel_bins=16, num_labels=5),
    "data2vec_audio": transformers("Data2VecAudioModel", SOUND, **FRAMES, conv_pos_kernel_size=5),
    "encodec_encoder": transformers("EncodecModel", audio(1, 1, 640), num_filters=4, upsampling_ratios=[4, 2],
                                    hidden_size=16, codebook_size=16, codebook_dim=16, num_lstm_layers=1),
    "hubert": transformers("HubertModel", SOUND, **FRAMES),
    "hubert_layer_norm": transformers("HubertForSequenceClassification", SOUND, **FRAMES, feat_extract_norm="layer",
                                      do_stable_layer_norm=True),
    "moonshine": transformers("MoonshineModel", lambda: ((), {"input_values": floats(1, 2000),
                              "decoder_input_ids": ids(1, 6)}), hidden_size=32, intermediate_size=48, vocab_size=99,
                              encoder_num_hidden_layers=2, decoder_num_hidden_layers=2, encoder_num_attention_heads=4,
                              decoder_num_attention_heads=4),
    "sew": transformers("SEWModel", SOUND, **FRAMES, squeeze_factor=2),
    "sew_d": transformers("SEWDModel", SOUND, **FRAMES, squeeze_factor=2, position_buckets=8,
                          max_position_embeddings=32),
    "speech_to_text": transformers("Speech2TextModel", _speech_to_text, **SPEECH, input_feat_per_channel=16,
                                   conv_channels=16, num_conv_layers=2, max_source_positions=64,
                                   max_target_positions=64),
    "univnet": transformers("UnivNetModel", lambda: ((), {"input_features": floats(1, 12, 16),
                            "noise_sequence": floats(1, 12, 8)}), model_in_channels=8, model_hidden_channels=8,
                            num_mel_bins=16, resblock_kernel_sizes=[3], resblock_stride_sizes=[4],
                            resblock_dilation_sizes=[[1, 3]], kernel_predictor_hidden_channels=8),
    "wav2vec2": transformers("Wav2Vec2ForCTC", SOUND, **FRAMES, vocab_size=20),
    "wav2vec2_bert": transformers("Wav2Vec2BertModel", lambda: ((), {"input_features": floats(1, 20, 16)}),
                                  hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=48,
                                  feature_projection_input_dim=16, conv_depthwise_kernel_size=7),
    "wav2vec2_conformer": transformers("Wav2Vec2ConformerModel", SOUND, **FRAMES, conv_depthwise_kernel_size=7,
                                       position_embeddings_type="rotary"),
    "wavlm": transformers("WavLMModel", SOUND, **FRAMES, num_buckets=16, max_bucket_distance=32),
    "whisper": transformers("WhisperModel", _whisper, **SPEECH, num_mel_bins=16, max_source_positions=20,
                            max_target_positions=20, pad_token_id=0, bos_token_id=1, eos_token_id=2,
                            decoder_start_token_id=1),
}  # fmt: skip


def _patches() -> tuple[tuple[Any, ...], dict[str, torch.Tensor]]:
    return (), {"past_values": floats(2, 32, 3)}


def _forecast() -> tuple[tuple[Any, ...], dict[str, torch.Tensor]]:
    past, future, lags = 16, 4, 3
    return (), {
        "past_values": floats(2, past + lags),
        "past_time_features": floats(2, past + lags, 2),
        "past_observed_mask": torch.ones(2, past + lags),
        "future_values": floats(2, future),
        "future_time_features": floats(2, future, 2),
    }


SERIES = {**SPEECH, "prediction_length": 4, "context_length": 16, "lags_sequence": [1, 2, 3], "num_time_features": 2,
          "scaling": False, "encoder_layers": 2}  # fmt: skip

TIME_SERIES: dict[str, Callable[[], Built]] = {
    "autoformer": transformers("AutoformerModel", _forecast, **SERIES, moving_average=5, label_length=4),
    "informer": transformers("InformerModel", _forecast, **SERIES, distil=False),
    "informer_full": transformers("InformerModel", _forecast, **SERIES, attention_type="full", distil=False),
    "patchtsmixer": transformers("PatchTSMixerForPrediction", _patches, context_length=32, prediction_length=8,
                                 patch_length=8, patch_stride=8, num_input_channels=3, d_model=16, num_layers=2),
    "patchtst": transformers("PatchTSTForPrediction", _patches, context_length=32, prediction_length=8,
                             patch_length=8, patch_stride=8, num_input_channels=3, d_model=16, ffn_dim=32,
                             num_hidden_layers=2, num_attention_heads=4, loss="mse"),
    "time_series_transformer": transformers("TimeSeriesTransformerModel", _forecast, **SERIES),
    "timesfm": transformers("TimesFmModel", lambda: ((), {"past_values": floats(2, 64),
                            "past_values_padding": torch.zeros(2, 64, dtype=torch.int64),
                            "freq": torch.zeros(2, 1, dtype=torch.int64)}),
                            patch_length=16, context_length=64, horizon_length=16, hidden_size=32, head_dim=8,
                            intermediate_size=32, num_hidden_layers=2, num_attention_heads=4),
}  # fmt: skip
