"""What torch.export says when it fails, as an error that shows the user's line and what to do."""

from __future__ import annotations

import inspect
import operator
import re
import traceback
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from transpiler.dims import SymbolRange, evaluate, free_symbols, parse_dim
from transpiler.errors import Location, TranspileError
from transpiler.frames import Files, frames_of_exception, user_location


def first_line(error: BaseException) -> str:
    """The first line of an exception's text that is not empty."""
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)


_DATA_DEPENDENT = (
    "GuardOnDataDependentSymNode",
    "data-dependent",
    "DataDependentOutputException",
    "Could not guard",
    "DynamicOutputShapeException",
)


def is_data_dependent(error: BaseException) -> bool:
    """Whether torch.export failed for the values of a tensor."""
    return any(mark in str(error) or mark in type(error).__name__ for mark in _DATA_DEPENDENT)


def _packs_sequences(error: BaseException) -> bool:
    """Whether a recurrent layer was given a packed sequence, or one was being packed or unpacked."""
    functions = ("pack_padded_sequence", "pad_packed_sequence", "pack_sequence")
    for frame, _ in traceback.walk_tb(error.__traceback__):
        in_module = frame.f_code.co_filename.endswith(("nn/modules/rnn.py", "nn/utils/rnn.py"))
        given = frame.f_locals.get("orig_input")
        if in_module and (frame.f_code.co_name in functions or type(given).__name__ == "PackedSequence"):
            return True
    return False


def misfit(
    error: Exception, function: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]
) -> TranspileError | None:
    """The user error "bad-examples" for a TypeError that the call `function(*args, **kwargs)` cannot but raise.

    The signature alone proves nothing: a decorator may take what the function that it wraps does not.
    """
    if not isinstance(error, TypeError):
        return None
    try:
        signature = inspect.signature(function)
    except ValueError:
        return None
    try:
        signature.bind(*args, **kwargs)
    except TypeError as reason:
        taken = f"{getattr(function, '__name__', 'forward')}({', '.join(signature.parameters)})"
        given = [f"{len(args)} positional"] * bool(args) + [f"{name}=" for name in kwargs]
        return TranspileError(
            "bad-examples",
            f"The example inputs do not fit {taken}: {reason}",
            notes=[f"given: {', '.join(given) or 'nothing'}"],
            hints=["example_inputs() returns a tuple of the positional arguments, or (args, kwargs)"],
        )
    return None


def export_error(error: Exception, files: Files) -> TranspileError:
    """The user error for a failed export: "data-dependent-control-flow", "dynamic-shape" or
    "export-failed"."""
    location = user_location(frames_of_exception(error), files)
    text = str(error)
    if location is None and (match := re.search(r'File "([^"]+)", line (\d+), in (\w+)\n\s+(.*)', text)):
        location = Location(files.show(match[1]), int(match[2]), match[3], match[4].strip())
    locations = [location] if location else []
    if _packs_sequences(error):
        return TranspileError(
            "packed-sequence",
            "Packed sequences are not supported: the sizes of their batches depend on the lengths",
            locations=locations,
            hints=["give the padded batch to the recurrent layer, and mask its outputs by the lengths"],
        )
    if is_data_dependent(error):
        return TranspileError(
            "data-dependent-control-flow",
            "Control flow or a shape depends on the values of a tensor",
            locations=locations,
            notes=["the model is traced once: a Python `if`, `while`, int() or .item() cannot look at values"],
            hints=[
                "choose between tensors with torch.where(condition, a, b), between functions with torch.cond",
                "or compute the decision from shapes and constructor arguments, which are fixed",
            ],
        )
    if "Constraints violated" in text or "ConstraintViolation" in type(error).__name__:
        return _constraint_error(text, locations)
    return TranspileError(
        "export-failed",
        f"torch.export cannot trace the model: {type(error).__name__}: {first_line(error)}",
        locations=locations,
        hints=_hints(text, bool(location)),
    )


def _hints(text: str, located: bool) -> list[str]:
    if "numpy.ndarray" in text:
        return ["example inputs are tensors: torch.from_numpy(array)"]
    return ["check that model(*args, **kwargs) runs on the example inputs"] if located else []


# A guard that torch could not prove, of one size: the Dim's name, the size, its condition.
_UNPROVED = re.compile(r"Not all values of (\w+) = (\S+) in the specified range.* satisfy the generated guard (.*)\.")
_COMPARED = re.compile(r"(.+) (==|!=|<=|>=|<|>) (.+)")
_COMPARE: dict[str, Callable[[int, int], bool]] = {
    "==": operator.eq, "!=": operator.ne, "<=": operator.le, ">=": operator.ge, "<": operator.lt, ">": operator.gt,
}  # fmt: skip
MAX_TRIED = 4096


def guards_hold(error: BaseException, bounds: Mapping[str, SymbolRange]) -> bool:
    """Whether all that torch.export complains of are guards that it could not prove and that are true all the same: for
    every value within the `bounds` of the Dims, by name.

    torch's own reasoning stops short of `min(8*n + 8, 16*n + 16) == 8*n + 8`. Without an upper bound, guards that
    divide are not looked at, and others are tried up to MAX_TRIED and at powers of two: a comparison of linear sizes
    changes at numbers about as large as those it is written with.
    """
    text = str(error)
    if "Constraints violated" not in text:
        return False
    lines = [line.strip(" -") for line in text.splitlines() if line.lstrip().startswith("- ")]
    return bool(lines) and all(_guard_holds(line, bounds) for line in lines)


def _guard_holds(line: str, bounds: Mapping[str, SymbolRange]) -> bool:
    match = _UNPROVED.fullmatch(line)
    compared = _COMPARED.fullmatch(match[3].replace(match[2], "size")) if match else None
    if match is None or compared is None or match[1] not in bounds:
        return False
    try:
        left, right = (parse_dim(compared[side]) for side in (1, 3))
    except ValueError:
        return False
    allowed = bounds[match[1]]
    if free_symbols(left) | free_symbols(right) != {"size"}:
        return False
    if allowed.high is not None and allowed.high - allowed.low <= MAX_TRIED:
        values = [*range(allowed.low, allowed.high + 1)]
    elif any(mark in compared[0] for mark in "/%") or any(
        int(number) > MAX_TRIED // 4 for number in re.findall(r"\d+", compared[0])
    ):
        return False
    else:
        large = [1 << power for power in range(12, 32)]
        values = [*range(allowed.low, allowed.low + MAX_TRIED), *large]
    compare = _COMPARE[compared[2]]
    return all(compare(evaluate(left, {"size": value}), evaluate(right, {"size": value})) for value in values)


_FIXED = re.compile(r"You marked (\w+) as dynamic but your code specialized it to be a constant \((\d+)\)")
_RANGE = re.compile(r"Not all values of (\w+) = .* in the specified range.* satisfy the generated guard (.*)")
_SIZE = re.compile(r"L\['(\w+)'\]\.size\(\)\[(\d+)\]")
MAX_REASONS = 4


def _constraint_error(text: str, locations: list[Location]) -> TranspileError:
    """torch.export's "Constraints violated" in the user's names, with what to write instead."""
    notes: list[str] = []
    for line in (line.strip(" -") for line in text.splitlines() if line.lstrip().startswith("- ")):
        if match := _FIXED.search(line):
            notes.append(f"{match[1]} was fixed to {match[2]}: forward, or an operator in it, needs to know it")
        elif match := _RANGE.search(line):
            condition = _SIZE.sub(r"\1.size(\2)", match[2]).rstrip(".")
            notes.append(f"not every {match[1]} that was asked for satisfies {condition}, which forward relies on")
        else:
            notes.append(_SIZE.sub(r"dimension \2 of \1", line))
    if len(notes) > MAX_REASONS:
        notes = [*notes[:MAX_REASONS], f"and {len(notes) - MAX_REASONS} more conditions"]
    return TranspileError(
        "dynamic-shape",
        "The model does not allow a dimension to vary as asked",
        locations=locations,
        notes=notes,
        hints=[_fix(line.strip()) for line in _suggested(text)],
    )


def _suggested(text: str) -> list[str]:
    if "Suggested fixes:" not in text:
        return []
    block = text.split("Suggested fixes:")[-1].split("\n\n")[0]
    # Names that begin with an underscore are torch's own, for parts of the user's.
    return [line for line in block.splitlines() if line.strip() and not line.strip().startswith("_")]


def _fix(line: str) -> str:
    """One of torch's suggestions as what to give the transpiler."""
    name, _, value = (part.strip() for part in line.partition("="))
    if value.isdigit():
        return f"leave {name} fixed, at {value}"
    if match := re.fullmatch(r"(\d+)\*_?(\w+)", value):
        return f"let it be a multiple: NAME.DIM={match[1]}*{name}"
    if match := re.fullmatch(r"Dim\('\w+'(?:, min=(\d+))?(?:, max=(\d+))?\)", value):
        return f"narrow its bounds: NAME.DIM={name}:{match[1] or 1}..{match[2] or ''}"
    if value.isidentifier():
        return f"give both dimensions one name: {value} in place of {name}"
    return f"torch suggests {line}"
