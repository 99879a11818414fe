"""What torch.export says when it fails, as an error that shows the user's line and what to do."""

from __future__ import annotations

import re

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


def export_error(error: Exception, files: Files) -> TranspileError:
    """The user error for a failed export: "data-dependent-control-flow", "dynamic-shape" or
    "export-failed"."""
    location = user_location(frames_of_exception(error), files)
    text = str(error)
    if location is None and (match := re.search(r'File "([^"]+)", line (\d+), in (\w+)\n\s+(.*)', text)):
        location = Location(files.show(match[1]), int(match[2]), match[3], match[4].strip())
    locations = [location] if location else []
    if any(mark in text or mark in type(error).__name__ for mark in _DATA_DEPENDENT):
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
        fixes = text.split("Suggested fixes:")[-1].split("\n\n")[0].strip() if "Suggested fixes:" in text else ""
        reasons = [line.strip(" -") for line in text.splitlines() if line.lstrip().startswith("- ")]
        return TranspileError(
            "dynamic-shape",
            "The model does not allow a dimension to vary as asked",
            notes=reasons,
            hints=[f"torch suggests: {'; '.join(fixes.split(chr(10)))}"] if fixes else [],
        )
    return TranspileError(
        "export-failed",
        f"torch.export cannot trace the model: {type(error).__name__}: {first_line(error)}",
        locations=locations,
        hints=["check that model(*args, **kwargs) runs on the example inputs"] if location else [],
    )
