"""A package in the generated shape, its model a few lines of numpy: what the generated tests are tested on.

The model: `hidden = relu(x @ fc.weight.T + fc.bias)`, `total = sum(hidden)`; so is "PyTorch".
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from transpiler.cases import Argument
from transpiler.draw import Array
from transpiler.formatting import format_python
from transpiler.recorded import Lower, OutputSpec, Recording
from transpiler.structure import Leaf, Mapping_, Sequence_
from transpiler.testing import FunctionTests, emit_tests
from transpiler.verify import record

MODEL = """
from __future__ import annotations

import json
import struct
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

HERE = Path(__file__).parent


def _read(path: Path) -> dict[str, Any]:
    data = Path(path).read_bytes()
    (length,) = struct.unpack("<Q", data[:8])
    state = {}
    for key, item in json.loads(data[8 : 8 + length]).items():
        begin, end = item["data_offsets"]
        if 8 + length + end > len(data):
            raise ValueError(f"{Path(path).name} is damaged")
        raw = data[8 + length + begin : 8 + length + end]
        state[key] = np.frombuffer(raw, "float32").reshape(item["shape"])
    return state


class Model:
    taps = ("fc",)

    @classmethod
    def runnable_isas(cls, device: str) -> list[str]:
        return ["numpy"]

    def __init__(
        self, weights: Any = None, threads: int | None = None, native: bool = True, device: str = "cpu"
    ) -> None:
        self.manifest: dict[str, Any] = json.loads((HERE / "manifest.json").read_text())
        self._state = _read(HERE / "weights.cpu.safetensors")
        if weights is not None:
            self.load_weights(weights)

    def load_weights(self, weights: Any) -> None:
        state = dict(weights) if isinstance(weights, Mapping) else _read(weights)
        problems = [f"unexpected {key}" for key in state if key not in self._state]
        for key, value in self._state.items():
            if key not in state or state[key].shape != value.shape:
                problems.append(f"missing or wrong shape {key}")
        if problems:
            raise ValueError("; ".join(problems))
        self._state = state

    def _fc(self, x: Any) -> Any:
        if not isinstance(x, np.ndarray):
            raise TypeError(f"x: expected an array, got {type(x).__name__}")
        if x.dtype != np.float32:
            raise TypeError(f"x: expected float32, got {x.dtype}")
        if x.shape != (2, 3):
            raise ValueError(f"x: expected shape (2, 3), got {x.shape}")
        with np.errstate(all="ignore"):
            return SCALE_X @ self._state["fc.weight"].T + self._state["fc.bias"]

    def __call__(self, x: Any) -> Any:
        hidden = np.maximum(self._fc(x), np.float32(0))
        return {"hidden": hidden, "total": hidden.sum(axis=AXIS)}

    def timeline(self, *inputs: Any, function: str) -> list[Any]:
        return []

    def tap(self, path: str) -> Callable[..., Any]:
        if path != "fc":
            raise KeyError(f"{path}; known: fc")
        return self._fc
"""

MAIN = 'import sys\nfrom {name} import Model\nModel()\nprint(sys.argv[1], "ok")\n'

Outputs = tuple[list[Array], dict[str, Array]]


def weights() -> dict[str, Array]:
    return {
        "fc.bias": np.asarray([0.1, -0.2, 0.3, 0.4], np.float32),
        "fc.weight": np.linspace(-1, 1, 12, dtype=np.float32).reshape(4, 3),
    }


def _run(inputs: Sequence[Array], state: Mapping[str, Array] | None, dtype: str) -> Outputs:
    state = {key: value.astype(dtype) for key, value in (state or weights()).items()}
    with np.errstate(all="ignore"):
        fc = inputs[0].astype(dtype) @ state["fc.weight"].T + state["fc.bias"]
        hidden = np.maximum(fc, 0)
        return [hidden, hidden.sum(axis=1)], {"linear": fc}


def eager(
    flat_inputs: Sequence[Array], *, weights: Mapping[str, Array] | None, state: Mapping[str, Array] | None = None
) -> list[Array]:
    return _run(flat_inputs, weights, "float32")[0]


def reference(
    flat_inputs: Sequence[Array],
    *,
    double: bool,
    capture_values: Sequence[str],
    weights: Mapping[str, Array] | None,
    state: Mapping[str, Array] | None = None,
) -> Outputs:
    return _run(flat_inputs, weights, "float64" if double else "float32")


def _rounded(
    inputs: Sequence[Array],
    /,
    *,
    capture_values: Sequence[str],
    weights: Mapping[str, Array] | None,
    state: Mapping[str, Array] | None,
) -> Outputs:
    return _run(inputs, weights, "float32")


def recording(precision: str = "float32") -> Recording:
    """What PyTorch gives; with a lower precision, as if no rounding to it mattered."""
    example = np.linspace(-2, 2, 6, dtype=np.float32).reshape(2, 3)
    return record(
        [Argument("x", "float32", (2, 3))],
        [example],
        [OutputSpec("hidden", "float32"), OutputSpec("total", "float32")],
        eager=eager,
        reference=reference,
        state=weights(),
        taps={"fc": "linear"},
        lower=None if precision == "float32" else Lower(precision, _rounded),
    )


def write_package(
    folder: Path,
    *,
    scale: str = "x",
    axis: int = 1,
    state: dict[str, Array] | None = None,
    precision: str = "float32",
) -> Path:
    """Write the package `tiny`; `scale` replaces the input, `axis` the summed axis, `state` the weights."""
    root = folder / "src" / "tiny"
    root.mkdir(parents=True)
    source = MODEL.replace("SCALE_X", scale).replace("AXIS", str(axis))
    (root / "__init__.py").write_text(source)
    (root / "__main__.py").write_text(MAIN.format(name="tiny"))
    header: dict[str, object] = {}
    body = b""
    for key, array in (state or weights()).items():
        header[key] = {
            "dtype": "F32",
            "shape": list(array.shape),
            "data_offsets": [len(body), len(body) + array.nbytes],
        }
        body += array.tobytes()
    text = json.dumps(header).encode()
    (root / "weights.cpu.safetensors").write_bytes(len(text).to_bytes(8, "little") + text + body)
    files = {item.name: hashlib.sha256(item.read_bytes()).hexdigest() for item in sorted(root.iterdir())}
    (root / "manifest.json").write_text(
        json.dumps(
            {"targets": ["cpu"], "files": files, "kernels": {}, "weights": {"keys": {key: {} for key in weights()}}}
        )
    )
    tests = emit_tests(
        [
            FunctionTests(
                recording(precision),
                in_structure=Sequence_("tuple", (Sequence_("tuple", (Leaf(0),)), Mapping_("dict", ()))),
                out_structure=Mapping_("dict", (("hidden", Leaf(0)), ("total", Leaf(1)))),
            )
        ],
        package="tiny",
    )
    for name, content in format_python(tests).items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return folder
