"""Architectures that are refused, and what the refusal says (a regular expression). Strict both ways: one that is
refused and not listed fails, and so does one that is listed and works."""

REFUSED: dict[str, str] = {
    "dbrx": "Control flow or a shape depends on the values of a tensor",  # a loop over the experts that were chosen
    "fsmt": "Control flow or a shape depends on the values of a tensor",  # counts the padding at the end
    "informer": "torch.export cannot trace the model",  # traced, its mask has another size than its queries
    "jetmoe": "Unsupported operator 'aten.item",  # sizes of groups become sizes of tensors
    "led": "Control flow or a shape depends on the values of a tensor",  # asks whether any attention is global
    "longformer": "Control flow or a shape depends on the values of a tensor",
    "nllb_moe": "torch.export cannot trace the model",
    "packed_lstm": "Packed sequences are not supported",
    "reformer": "Unsupported operator 'aten.item",  # asks for the smallest length
    "switch_transformers": "torch.export cannot trace the model",
    "vilt": "Control flow or a shape depends on the values of a tensor",  # draws the patches that it keeps
    "xmod": "Unsupported symbolic size",  # a group per language
}
