"""A small `.pt2` file, taken apart and put together again with something else inside."""

import io
import json
import zipfile
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import nn

MODEL = "models/model.json"
WEIGHTS = "data/weights/model_weights_config.json"
CONSTANTS = "data/constants/model_constants_config.json"
EXAMPLES = "data/sample_inputs/model.pt"


class Net(nn.Module):
    """Has what a program can have: weights, a view as a buffer, a constant, a size that varies, nested results."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 3)
        self.register_buffer("rows", torch.ones(3).expand(2, 3))
        self.steps = torch.arange(3.0)

    def forward(self, x: torch.Tensor, *, scale: torch.Tensor) -> dict[str, Any]:
        y = torch.relu(self.linear(x)) * scale
        return {"y": y, "half": y.reshape(x.shape[0] * 3), "more": (self.rows + self.steps,)}


@cache
def saved() -> bytes:
    """What torch.export.save writes of `Net`."""
    torch.manual_seed(0)
    shapes = {"x": {0: torch.export.Dim("batch", min=2, max=64)}, "scale": None}
    program = torch.export.export(Net().eval(), (torch.randn(4, 4),), {"scale": torch.ones(())}, dynamic_shapes=shapes)
    buffer = io.BytesIO()
    torch.export.save(program, buffer)
    return buffer.getvalue()


@cache
def _records() -> tuple[tuple[str, bytes], ...]:
    with zipfile.ZipFile(io.BytesIO(saved())) as archive:
        return tuple((item.filename, archive.read(item)) for item in archive.infolist())


def records() -> dict[str, bytes]:
    """Path in the archive, without its folder -> content."""
    return {name.split("/", 1)[1]: content for name, content in _records()}


def write(path: Path, content: dict[str, bytes], compression: int = zipfile.ZIP_STORED) -> Path:
    """An archive of these records."""
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, data in content.items():
            archive.writestr(f"{path.stem}/{name}", data)
    return path


def changed(path: Path, record: str, change: Callable[[Any], Any]) -> Path:
    """The archive with one of its JSON records changed in place."""
    content = records()
    data = json.loads(content[record])
    change(data)
    return write(path, {**content, record: json.dumps(data).encode()})
