"""Architectures that are refused, and what the refusal says (a regular expression). Strict both ways: one that is
refused and not listed fails, and so does one that is listed and works."""

_VALUES = "Control flow or a shape depends on the values of a tensor"
REFUSED: dict[str, str] = {
    # Traced, it makes a mask that it leaves out otherwise, and which does not fit its attention over channels.
    "autoformer": "torch.export cannot trace the model",
    "dbrx": _VALUES,  # a loop over the experts that were chosen
    "informer": "draws random numbers",  # the keys that it looks at
    "jetmoe": "Unsupported operator 'aten.item",  # sizes of groups become sizes of tensors
    "nllb_moe": "torch.export cannot trace the model",  # converts a layer in forward; then as dbrx
    "packed_lstm": "Packed sequences are not supported",
    "switch_transformers": "torch.export cannot trace the model",  # as nllb_moe
    "vilt": "draws random numbers|A shape depends on the data",  # the patches that it keeps
}

# Here to be refused: what they do is no part of what the transpiler is for.
OUT_OF_SCOPE = frozenset({"packed_lstm"})

REFUSALS = ("refused", "not exportable")
