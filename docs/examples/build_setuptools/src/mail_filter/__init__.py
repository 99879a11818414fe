"""A library that uses a model of the same wheel."""

from collections.abc import Sequence

import numpy as np
from mail_model import Model

_model = Model()


def wanted(words: Sequence[int]) -> bool:
    """Whether a mail of these words (20 numbers below 100) is wanted."""
    return bool(_model(np.array([words], np.int64))[0, 0] > 0.5)
