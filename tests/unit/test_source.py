from pathlib import Path

import pytest

from transpiler.errors import TranspileError, UsageError
from transpiler.source import ModelSource, choose_entry, read_source

TEXT = '''
import torch
from torch import nn
from other import Imported


class Block(nn.Module):
    """A block."""

    def __init__(self, width: int, act="relu", *, bias=True, **rest):
        super().__init__()
        self.fc = nn.Linear(width, width)

    def forward(self, x):
        h = self.fc(x)
        return torch.relu(
            h
        )


class Scale(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x


class Base(nn.Module):
    def __init__(self, depth=2):
        super().__init__()
        self.blocks = nn.Sequential(*self.make(Block))


class Net(Base):
    def forward(self, x, /, mask=None, *, scale: float = 1.5):
        x, (y, z) = self.a(x), (1, 2)
        total = (
            x
            + y
        )
        total += z
        return total


def helper(a, b=[1, 2]):
    return a
'''


@pytest.fixture
def source(tmp_path: Path) -> ModelSource:
    path = tmp_path / "net.py"
    path.write_text(TEXT)
    return read_source(path)


def test_classes(source: ModelSource) -> None:
    assert {name: item.is_module for name, item in source.classes.items()} == {
        "Block": True, "Scale": False, "Base": True, "Net": True,
    }  # fmt: skip
    block = source.classes["Block"]
    assert block.docstring == "A block."
    assert [(p.name, p.kind, p.default) for p in block.init] == [
        ("width", "positional", None),
        ("act", "positional", '"relu"'),
        ("bias", "keyword_only", "True"),
        ("rest", "var_keyword", None),
    ]
    assert source.classes["Base"].builds == {"Block"}


def test_inherited_constructor(source: ModelSource) -> None:
    assert [p.name for p in source.classes["Net"].init] == ["depth"]


def test_forward(source: ModelSource) -> None:
    forward = source.classes["Net"].forward
    assert forward is not None
    assert [(p.name, p.kind, p.default) for p in forward] == [
        ("x", "positional_only", None),
        ("mask", "positional", "None"),
        ("scale", "keyword_only", "1.5"),
    ]
    lines = source.classes["Net"].forward_lines
    assert lines is not None
    assert source.index.text(lines[0]).startswith("def forward(self, x, /")


def test_functions(source: ModelSource) -> None:
    assert [(p.name, p.default) for p in source.functions["helper"].parameters] == [
        ("a", None),
        ("b", "[1, 2]"),
    ]


def test_assigned_names(source: ModelSource) -> None:
    lines = TEXT.splitlines()
    at = next(i for i, line in enumerate(lines, 1) if "x, (y, z)" in line)
    assert source.assigned[at] == ("x", "y", "z")
    assert source.assigned[at + 1] == source.assigned[at + 3] == ("total",)  # every line of the statement
    assert source.assigned[at + 5] == ("total",)
    assert source.index.function(at) == "Net.forward"
    inside = next(i for i, line in enumerate(lines, 1) if line.strip() == "h")
    assert source.index.statements[inside].returns


def test_choose_entry(source: ModelSource) -> None:
    assert choose_entry(source).name == "Net"
    assert choose_entry(source, "Block").kind == "class"
    assert choose_entry(source, "helper").kind == "factory"
    assert choose_entry(source, "Imported").kind == "imported"
    with pytest.raises(UsageError, match=r"Unknown entry 'Nets'; net.py defines: Block, Base, Net, helper"):
        choose_entry(source, "Nets")


def test_build_model_wins(tmp_path: Path) -> None:
    path = tmp_path / "m.py"
    path.write_text(TEXT + "\ndef build_model():\n    return Net()\n")
    assert choose_entry(read_source(path)).name == "build_model"


def test_reading_does_not_run(tmp_path: Path) -> None:
    path = tmp_path / "m.py"
    path.write_text("raise SystemExit(3)\n")
    with pytest.raises(TranspileError, match=r"no nn\.Module class"):
        choose_entry(read_source(path))
