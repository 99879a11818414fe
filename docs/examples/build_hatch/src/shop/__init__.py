"""A library that ships a model: PyTorch is needed to build it, and not to use it."""

import numpy as np
import numpy.typing as npt

from .ratings import Model

_model = Model()


def best_rating(visits: npt.NDArray[np.float32]) -> npt.NDArray[np.int64]:
    """The likeliest rating, 1 to 5, of every customer (row) of `visits`, float32[customers, 12]."""
    return _model(visits).argmax(axis=1) + 1
