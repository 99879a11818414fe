"""Every message that the front end shows to users, pinned as it is rendered."""

from collections.abc import Callable
from pathlib import Path
from textwrap import dedent
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from tests.failures.command import HEAD, UNSUPPORTED
from transpiler import transpile
from transpiler.capture import capture_file, capture_module
from transpiler.errors import TranspileErrors, UsageError
from transpiler.importer import import_program
from transpiler.specs import parse_dynamic, parse_input

Write = Callable[[str], Path]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    def _write(text: str) -> Path:
        path = tmp_path / "net.py"
        path.write_text(HEAD + dedent(text))
        return path

    return _write


def message(path: Path, **options: Any) -> str:
    """The rendered error of capturing and importing a file."""
    with pytest.raises(TranspileErrors) as info:
        import_program(capture_file(path, **options))
    return str(info.value)


def pinned(text: str) -> str:
    return dedent(text).strip("\n")


ONE = """
class Net(nn.Module):
    def forward(self, x, mask=None):
        return x * 2
"""
EXAMPLE = """
def example_inputs():
    return (torch.ones(2, 3),)
"""


def test_no_such_file(tmp_path: Path) -> None:
    assert message(tmp_path / "nothing.py") == f"No such file: {tmp_path / 'nothing.py'}"


def test_syntax_error(write: Write) -> None:
    assert message(write("class Net(nn.Module):\n    def forward(self, x)\n        return x\n")) == pinned("""
        Syntax error: expected ':'
          net.py:4
            4 | def forward(self, x)
    """)


def test_several_classes(write: Write) -> None:
    text = "class A(nn.Module):\n    pass\nclass B(nn.Module):\n    pass\n"
    assert message(write(text)) == pinned("""
        net.py defines several models: A, B
          Hint: choose one: --entry A
          Hint: or add a build_model() that returns the model
    """)


def test_no_model(write: Write) -> None:
    assert message(write("x = 1\n")) == pinned("""
        net.py defines no nn.Module class and no build_model()
          Hint: add a build_model() that returns the model, or name what builds it: --entry NAME
    """)


def test_unknown_entry(write: Write) -> None:
    with pytest.raises(UsageError) as info:
        capture_file(write(ONE + EXAMPLE), entry="Nett")
    assert str(info.value) == "Unknown entry 'Nett'; net.py defines: Net."


def test_constructor_arguments(write: Write) -> None:
    text = "class Net(nn.Module):\n    def __init__(self, width, depth, act='relu'):\n        pass\n"
    assert message(write(text + EXAMPLE)) == pinned("""
        Net() needs arguments without a default: width, depth
          Hint: give them: --init width=VALUE --init depth=VALUE
          Hint: or add a build_model() without parameters to the file, that returns the model
    """)


def test_unknown_init(write: Write) -> None:
    assert message(write(ONE + EXAMPLE), init={"widht": 3}) == "Net() takes no argument widht; it takes none."


def test_no_example_inputs(write: Write) -> None:
    assert message(write(ONE)) == pinned("""
        No example inputs for Net (forward takes: x, mask)
          Hint: give shape and dtype of each: --input x=1x3x224x224:float32
          Hint: or add example_inputs() to net.py, that returns a tuple of tensors or (args, kwargs)
    """)


def test_bad_example_inputs(write: Write) -> None:
    text = ONE + "def example_inputs():\n    return 3\n"
    assert message(write(text)) == ("example_inputs() returned int, expected a tuple of tensors or (args, kwargs)")


def test_inputs_that_do_not_fit(write: Write) -> None:
    path = write(ONE)
    assert message(path, inputs=[parse_input("y=2x3")]) == "forward takes no argument y; it takes: x, mask."
    assert message(path, inputs=[parse_input("mask=2x3")]) == pinned("""
        No input for x.
          Hint: add --input x=SHAPE:DTYPE
    """)


def test_dynamic_that_does_not_fit(write: Write) -> None:
    path = write(ONE + EXAMPLE)
    assert message(path, dynamic=[parse_dynamic("y.0=b")]) == "--dynamic y.0: no such input; known: x."
    assert message(path, dynamic=[parse_dynamic("x.2=b")]) == "--dynamic x.2: x has 2 dims."


def test_user_code_fails(write: Write) -> None:
    text = """
        class Net(nn.Module):
            def __init__(self):
                super().__init__()
                self.fc = nn.Linear(3, "four")
            def forward(self, x):
                return x
    """
    lines = message(write(dedent(text) + EXAMPLE)).splitlines()
    assert lines[0].startswith("Net() failed: TypeError: ")
    assert lines[1:] == ["  net.py:7, in Net.__init__", '    7 | self.fc = nn.Linear(3, "four")']


def test_user_file_fails(write: Write) -> None:
    assert message(write(ONE + EXAMPLE + "import nowhere_to_be_found\n")) == pinned("""
        Running net.py failed: ModuleNotFoundError: No module named 'nowhere_to_be_found'
          net.py:10
            10 | import nowhere_to_be_found
    """)


def test_not_a_module(write: Write) -> None:
    assert message(write("def build_model():\n    return 3\n" + EXAMPLE)) == (
        "build_model() returned int, expected an nn.Module"
    )


def test_data_dependent_control_flow(write: Write, capfd: pytest.CaptureFixture[str]) -> None:
    text = """
        class Net(nn.Module):
            def forward(self, x):
                if x.sum() > 0:
                    return x
                return -x
    """
    assert message(write(dedent(text) + EXAMPLE)) == pinned("""
        Control flow or a shape depends on the values of a tensor
          net.py:6, in Net.forward
            6 | if x.sum() > 0:
          Note: the model is traced once: a Python `if`, `while`, int() or .item() cannot look at values
          Hint: choose between tensors with torch.where(condition, a, b), between functions with torch.cond
          Hint: or compute the decision from shapes and constructor arguments, which are fixed
    """)
    assert capfd.readouterr() == ("", "")  # torch's own dumps are kept back


def test_packed_sequence(write: Write) -> None:
    text = """
        class Net(nn.Module):
            def __init__(self):
                super().__init__()
                self.rnn = nn.GRU(4, 8, batch_first=True)

            def forward(self, x):
                wide = x.unsqueeze(-1).expand(-1, -1, 4)
                packed = nn.utils.rnn.pack_padded_sequence(wide, torch.tensor([4, 2]), True)
                return self.rnn(packed)[1]

        def example_inputs():
            return (torch.randn(2, 4),)
    """
    assert message(write(dedent(text))) == pinned("""
        Packed sequences are not supported: the sizes of their batches depend on the lengths
          net.py:12, in Net.forward
            12 | return self.rnn(packed)[1]
          Hint: give the padded batch to the recurrent layer, and mask its outputs by the lengths
    """)


@pytest.mark.parametrize(
    ("returned", "reason", "given"),
    [
        ("torch.ones(2), torch.ones(2)", "too many positional arguments", "2 positional"),
        ("(torch.ones(2),), {'y': torch.ones(2)}", "got an unexpected keyword argument 'y'", "1 positional, y="),
        ("()", "missing a required argument: 'x'", "nothing"),
    ],
)
def test_example_inputs_that_do_not_fit_forward(write: Write, returned: str, reason: str, given: str) -> None:
    text = f"""
        class Net(nn.Module):
            def forward(self, x):
                return x + 1

        def example_inputs():
            return {returned}
    """
    assert message(write(dedent(text))) == pinned(f"""
        The example inputs do not fit forward(x): {reason}
          Note: given: {given}
          Hint: example_inputs() returns a tuple of the positional arguments, or (args, kwargs)
    """)


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"precision": "fp16"}, "Unknown precision 'fp16'; known: float32, tf32, float16, bfloat16."),
        ({"tune": "quick"}, "Unknown tune 'quick'; known: none, fast, full."),
    ],
)
def test_words_that_the_function_does_not_know(options: dict[str, Any], text: str) -> None:
    with pytest.raises(UsageError) as info:
        transpile(nn.Linear(4, 4), (torch.ones(1, 4),), **options)
    assert str(info.value) == text


def test_arrays_are_no_example_inputs(tmp_path: Path) -> None:
    with pytest.raises(TranspileErrors, match=r"Hint: example inputs are tensors: torch\.from_numpy\(array\)"):
        transpile(nn.Linear(4, 4), (np.ones((1, 4), np.float32),), out=tmp_path)


def test_one_tensor_stands_for_its_tuple(tmp_path: Path) -> None:
    """Its rows are not the arguments; as for what example_inputs() returns."""
    with pytest.raises(TranspileErrors, match="same reduction dim"):
        transpile(nn.Linear(4, 4), torch.ones(2, 3), out=tmp_path)


def test_export_fails(write: Write) -> None:
    text = """
        class Net(nn.Module):
            def forward(self, x):
                y = x @ x
                return y
    """
    lines = message(write(dedent(text) + EXAMPLE)).splitlines()
    assert lines[0].startswith("torch.export cannot trace the model: RuntimeError: ")
    assert lines[1:] == [
        "  net.py:6, in Net.forward",
        "    6 | y = x @ x",
        "  Hint: check that model(*args, **kwargs) runs on the example inputs",
    ]


def test_dynamic_refused_by_the_model(write: Write) -> None:
    text = """
        class Net(nn.Module):
            def forward(self, x):
                return x + torch.ones(2, 3)
    """
    shown = message(write(dedent(text) + EXAMPLE), dynamic=[parse_dynamic("x.0=batch")])
    assert shown.startswith("The model does not allow a dimension to vary as asked\n")
    assert "batch" in shown


def test_unsupported_operators_all_at_once(write: Write) -> None:
    assert message(write(UNSUPPORTED)) == pinned("""
        Unsupported operator 'aten._standard_gamma_grad.default' (2 uses)
          net.py:6, in Spectral.forward  (block)
            6 | return torch._standard_gamma_grad(torch._standard_gamma_grad(x, x), x)
          Hint: write it with other operators, or add the operator in transpiler/ops (see CONTRIBUTING.md)

        Unsupported operator 'aten._dirichlet_grad.default' (1 use)
          net.py:15, in Net.forward
            15 | return self.block(x), torch._dirichlet_grad(x, x, x)
          Hint: write it with other operators, or add the operator in transpiler/ops (see CONTRIBUTING.md)
    """)


def test_mutated_buffer_that_shares_memory(write: Write) -> None:
    text = """
        class Net(nn.Module):
            def __init__(self):
                super().__init__()
                self.register_buffer("total", torch.zeros(3))
                self.register_buffer("first", self.total[:1])

            def forward(self, x):
                self.total += x.sum(0)
                return x + self.first
    """
    assert message(write(dedent(text) + EXAMPLE)) == pinned("""
        The buffers 'total' and 'first' share memory, and the model writes it
          Hint: give each buffer memory of its own, with .clone()
    """)


def test_dtypes() -> None:
    class Net(torch.nn.Module):
        def forward(self, x, y):
            return x * 2, y

    with pytest.raises(TranspileErrors) as info:
        import_program(capture_module(Net(), (torch.ones(2, dtype=torch.complex64), torch.ones(2))))
    assert str(info.value).splitlines()[0] == "Unsupported dtype complex64 of input 'x'"


def test_pickled_module(tmp_path: Path) -> None:
    path = tmp_path / "model.pt"
    torch.save(torch.nn.Linear(2, 2), path)
    assert message(path) == pinned("""
        model.pt is refused: a pickled model can run any code when it is opened
          Hint: save the traced model: torch.export.save(torch.export.export(model.eval(), args), 'model.pt2')
          Hint: or give the model.py that defines the class, and the weights with --weights
    """)


def test_bad_pt2(tmp_path: Path) -> None:
    path = tmp_path / "model.pt2"
    path.write_bytes(b"hello")
    lines = message(path).splitlines()
    assert lines[0].startswith("model.pt2 is not a readable .pt2 file: ")
    assert lines[1] == "  Hint: write it with torch.export.save(torch.export.export(model.eval(), args), path)"
