"""The small languages of the command line: `--input`, `--init` and `--dynamic`. Text in, frozen records
out."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from transpiler.dims import SymbolRange
from transpiler.errors import UsageError
from transpiler.ir import DTYPES

_INPUT_EXAMPLES = ("1x3x224x224:float32", "x=1x128", "ids=1x128:int64[0..30521]", "scale=scalar:float32")
_DYNAMIC_EXAMPLES = ("x.0=batch", "ids.1=seq:1..512", "x.2=32*tiles:1..16")
_INTEGERS = ("int8", "uint8", "int16", "int32", "int64")


@dataclass(frozen=True)
class InputSpec:
    """Shape, dtype and bounds (inclusive, integers only) of one example input; `name` None means by
    position."""

    name: str | None
    shape: tuple[int, ...]
    dtype: str = "float32"
    low: int | None = None
    high: int | None = None

    def __str__(self) -> str:
        shape = "x".join(map(str, self.shape)) or "scalar"
        bounds = f"[{self.low}..{self.high}]" if self.low is not None else ""
        return f"{self.name + '=' if self.name else ''}{shape}:{self.dtype}{bounds}"


@dataclass(frozen=True)
class InitSpec:
    """One constructor argument."""

    key: str
    value: Any


@dataclass(frozen=True)
class DynamicSpec:
    """Dimension `dim` of the input `name`, or of every tensor in it, varies: it is `scale * symbol + offset`.

    None bounds (of the symbol) are left to torch.export. `function` is empty for every function that has such an input.
    """

    name: str
    dim: int
    symbol: str
    bounds: SymbolRange | None = None
    scale: int = 1
    offset: int = 0
    function: str = ""

    @property
    def place(self) -> str:
        """`[FUNCTION.]NAME.DIM`, as it was written."""
        return f"{self.function + '.' if self.function else ''}{self.name}.{self.dim}"


_INPUT = re.compile(
    r"(?:(?P<name>[^=]*)=)?(?P<shape>\d+(?:x\d+)*|scalar)(?::(?P<dtype>\w+)(?:\[(?P<low>-?\d+)\.\.(?P<high>-?\d+)\])?)?"
)


def parse_input(text: str) -> InputSpec:
    """`[NAME=]1x3x224x224[:DTYPE[[LO..HI]]]`; float32 by default, `scalar` is rank 0.

    Raises:
        UsageError: it does not parse, an unknown dtype, bounds that are empty or not of integers.
    """
    match = _INPUT.fullmatch(text.replace(" ", ""))
    if match is None:
        raise _usage("input", text, "expected [NAME=]SHAPE[:DTYPE[LO..HI]]", _INPUT_EXAMPLES)
    name = _identifier("input", text, match["name"], _INPUT_EXAMPLES) if match["name"] is not None else None
    dtype = match["dtype"] or "float32"
    if dtype not in DTYPES:
        raise _usage("input", text, f"unknown dtype {dtype!r}; known: {', '.join(DTYPES)}", _INPUT_EXAMPLES)
    shape = () if match["shape"] == "scalar" else tuple(int(size) for size in match["shape"].split("x"))
    low = high = None
    if match["low"] is not None:
        low, high = int(match["low"]), int(match["high"])
        if dtype not in _INTEGERS:
            raise _usage("input", text, f"bounds are for integers, not {dtype}", _INPUT_EXAMPLES)
        if low > high:
            raise _usage("input", text, f"the bounds {low}..{high} are empty", _INPUT_EXAMPLES)
    return InputSpec(name, shape, dtype, low, high)


def parse_init(text: str) -> InitSpec:
    """`KEY=VALUE`: a Python literal, else the text itself. Raises UsageError."""
    key, equals, value = text.partition("=")
    if not equals:
        raise _usage("init", text, "expected KEY=VALUE", ("channels=64", "layers=[2, 2, 2]", "act=relu"))
    _identifier("init", text, key.strip(), ("channels=64",))
    try:
        parsed = ast.literal_eval(value.strip())
    except (ValueError, SyntaxError, RecursionError, MemoryError):
        parsed = value
    return InitSpec(key.strip(), parsed)


_DYNAMIC = re.compile(
    r"(?:(?P<function>[^.=]+)\.)?(?P<name>[^.=]+)\.(?P<dim>\d+)=(?:(?P<scale>\d+)\*)?(?P<symbol>[^:+*]+)(?:\+(?P<offset>\d+))?"
    r"(?::(?P<low>\d+)\.\.(?P<high>\d*))?"
)


def parse_dynamic(text: str) -> DynamicSpec:
    """`[FUNCTION.]NAME.DIM=[N*]SYMBOL[+N][:LO..[HI]]`, the bounds inclusive and the symbol's. Raises UsageError."""
    match = _DYNAMIC.fullmatch(text.replace(" ", ""))
    if match is None:
        raise _usage("dynamic", text, "expected NAME.DIM=SYMBOL[:LO..HI]", _DYNAMIC_EXAMPLES)
    name = _identifier("dynamic", text, match["name"], _DYNAMIC_EXAMPLES)
    function = _identifier("dynamic", text, match["function"], _DYNAMIC_EXAMPLES) if match["function"] else ""
    symbol = _identifier("dynamic", text, match["symbol"], _DYNAMIC_EXAMPLES)
    bounds = None
    if match["low"] is not None:
        bounds = SymbolRange(int(match["low"]), int(match["high"]) if match["high"] else None)
        if bounds.low < 1:
            raise _usage("dynamic", text, "sizes are 1 or more", _DYNAMIC_EXAMPLES)
        if bounds.high is not None and bounds.low > bounds.high:
            raise _usage("dynamic", text, f"the bounds {bounds} are empty", _DYNAMIC_EXAMPLES)
    scale, offset = int(match["scale"] or 1), int(match["offset"] or 0)
    if scale < 1:
        raise _usage("dynamic", text, "the factor is 1 or more", _DYNAMIC_EXAMPLES)
    return DynamicSpec(name, int(match["dim"]), symbol, bounds, scale, offset, function)


def parse_inits(texts: Iterable[str]) -> dict[str, Any]:
    """All `--init` of a command. Raises UsageError, also for a key given twice."""
    values: dict[str, Any] = {}
    for item in map(parse_init, texts):
        if item.key in values:
            raise UsageError("bad-init", f"--init {item.key} is given twice.")
        values[item.key] = item.value
    return values


def _identifier(flag: str, text: str, name: str, examples: tuple[str, ...]) -> str:
    if not name.isidentifier():
        raise _usage(flag, text, f"{name!r} is not a name", examples)
    return name


def _usage(flag: str, text: str, why: str, examples: tuple[str, ...]) -> UsageError:
    shown = " ".join(f"--{flag} {shell_quote(example)}" for example in examples)
    return UsageError(f"bad-{flag}", f"Cannot read --{flag} {text!r}: {why}.", hints=[f"for example: {shown}"])


def shell_quote(text: str) -> str:
    """The text as it must be typed in a shell."""
    return text if re.fullmatch(r"[\w.=:/@%+-]+", text) else f"'{text}'"
