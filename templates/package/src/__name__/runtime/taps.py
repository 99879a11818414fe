"""Intermediate values of a call, by the PyTorch module paths they come from."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from .arguments import TensorSpec
from .errors import TapError
from .host import unblock
from .sizes import Shape, Sizes

Array = npt.NDArray[Any]


def check_path(path: str, entry: Mapping[str, Any]) -> None:
    """Raise TapError if the function that `entry` of the manifest describes has no value at `path`.

    The text names the nearest one that exists.
    """
    taps: Mapping[str, Any] = entry["taps"]
    fused: Mapping[str, str] = entry["fused"]
    if path in taps:
        return
    if path in fused:
        raise TapError(f"{path!r} was fused with its neighbours; the nearest value is {fused[path]!r}")
    close = difflib.get_close_matches(path, [*taps, *fused], n=3)
    hint = f"; close: {', '.join(map(repr, close))}" if close else "; see model.taps"
    raise TapError(f"the model has no value {path!r}{hint}")


@dataclass(frozen=True)
class Taken:
    """What a run kernel by kernel leaves behind.

    `tape` has the outputs of every kernel call, in order; `state` is how it was before the run.
    """

    tape: Sequence[tuple[Array, ...]]
    inputs: Sequence[Array]
    sizes: Sizes
    weights: Mapping[str, Array]
    state: Mapping[str, Array]

    def value(self, tap: Mapping[str, Any]) -> Array:
        """A copy of the value that a tap of the manifest describes, in PyTorch's layout."""
        match tap["kind"]:
            case "input":
                stored = self.inputs[tap["index"]]
            case "weight":
                stored = self.weights[tap["value"]]
            case "state":
                stored = self.state[tap["value"]]
            case _:
                stored = self.tape[tap["index"]][tap["output"]]
        if tap["blocked_channels"] is not None:
            stored = unblock(stored, tap["blocked_channels"])
        shape = Shape(tap["shape"]).at(self.sizes)
        if tap["channels_last"]:  # a kernel may see the value in another shape
            images, channels, *spatial = shape
            stored = np.moveaxis(stored.reshape(images, *spatial, channels), -1, 1)
        return np.array(TensorSpec(tap["value"], tap["dtype"], shape).give(stored.reshape(shape)))
