"""Every architecture of the zoo."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from tests.zoo.audio import AUDIO, TIME_SERIES
from tests.zoo.decoders import DECODERS, EXPERT_MODELS, STATE_SPACES
from tests.zoo.diffusion import DIFFUSION
from tests.zoo.encoders import ENCODERS
from tests.zoo.entry import Built, Entry
from tests.zoo.plain import PLAIN
from tests.zoo.seq2seq import SEQ2SEQ
from tests.zoo.timm_models import TIMM
from tests.zoo.vision import DENSE, DETECTION, MULTIMODAL, VISION

# Decay rates and time steps are parameters that are no weights of a product: they keep their own initial values.
OWN_WEIGHTS = {*STATE_SPACES} - {"falcon_h1"}

_FAMILIES: tuple[tuple[str, str, Mapping[str, Callable[[], Built]]], ...] = (
    ("transformers", "text encoders", ENCODERS),
    ("transformers", "decoders", DECODERS),
    ("transformers", "mixtures of experts", EXPERT_MODELS),
    ("transformers", "state spaces and hybrids", STATE_SPACES),
    ("transformers", "encoder-decoders", SEQ2SEQ),
    ("transformers", "vision", VISION),
    ("transformers", "segmentation and depth", DENSE),
    ("transformers", "detection", DETECTION),
    ("transformers", "image and text", MULTIMODAL),
    ("transformers", "audio", AUDIO),
    ("transformers", "time series", TIME_SERIES),
    ("timm", "timm", TIMM),
    ("diffusers", "diffusion", DIFFUSION),
    ("torch", "plain PyTorch", PLAIN),
)


def entries() -> list[Entry]:
    """All, in the order of the table. Names are unique."""
    found = [
        Entry(name, library, family, build, name in OWN_WEIGHTS)
        for library, family, table in _FAMILIES
        for name, build in table.items()
    ]
    assert len({item.name for item in found}) == len(found)
    return found
