"""Models and weights that cannot be transpiled: the messages of the command, whole."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from safetensors.numpy import save_file

from tests.failures.command import NET, UNSUPPORTED, Command, assert_fails

# --- the model ----------------------------------------------------------------------------------------------


def test_every_unsupported_operator_at_once(command: Command) -> None:
    assert_fails(
        command(UNSUPPORTED),
        1,
        """
        Error: Unsupported operator 'aten._standard_gamma_grad.default' (2 uses)
          net.py:6, in Spectral.forward  (block)
            6 | return torch._standard_gamma_grad(torch._standard_gamma_grad(x, x), x)
          Hint: write it with other operators, or add the operator in transpiler/ops (see CONTRIBUTING.md)

        Error: Unsupported operator 'aten._dirichlet_grad.default' (1 use)
          net.py:15, in Net.forward
            15 | return self.block(x), torch._dirichlet_grad(x, x, x)
          Hint: write it with other operators, or add the operator in transpiler/ops (see CONTRIBUTING.md)

        net.py was not transpiled, for 2 reasons; nothing was written.
        """,
    )


def test_no_example_inputs(command: Command) -> None:
    assert_fails(
        command(NET.partition("\n\n\ndef")[0]),
        1,
        """
        Error: No example inputs for Net (forward takes: x)
          Hint: give shape and dtype of each: --input x=1x3x224x224:float32
          Hint: or add example_inputs() to net.py, that returns a tuple of tensors or (args, kwargs)

        net.py was not transpiled; nothing was written.
        """,
    )


def test_several_classes(command: Command) -> None:
    assert_fails(
        command(NET + "class Other(nn.Module):\n    pass\n"),
        1,
        """
        Error: net.py defines several models: Net, Other
          Hint: choose one: --entry Net
          Hint: or add a build_model() that returns the model

        net.py was not transpiled; nothing was written.
        """,
    )


def test_constructor_needs_arguments(command: Command) -> None:
    assert_fails(
        command(NET.replace("__init__(self)", "__init__(self, width, depth)")),
        1,
        """
        Error: Net() needs arguments without a default: width, depth
          Hint: give them: --init width=VALUE --init depth=VALUE
          Hint: or add a build_model() without parameters to the file, that returns the model

        net.py was not transpiled; nothing was written.
        """,
    )


def test_data_dependent_control_flow(command: Command) -> None:
    assert_fails(
        command(NET.replace("return self.fc(x)", "return self.fc(x) if x.sum() > 0 else x")),
        1,
        """
        Error: Control flow or a shape depends on the values of a tensor
          net.py:10, in Net.forward
            10 | return self.fc(x) if x.sum() > 0 else x
          Note: the model is traced once: a Python `if`, `while`, int() or .item() cannot look at values
          Hint: choose between tensors with torch.where(condition, a, b), between functions with torch.cond
          Hint: or compute the decision from shapes and constructor arguments, which are fixed

        net.py was not transpiled; nothing was written.
        """,
    )


def test_user_code_raises(command: Command) -> None:
    source = NET.replace("super().__init__()", "super().__init__()\n        raise ValueError('no licence')")
    assert_fails(
        command(source),
        1,
        """
        Error: Net() failed: ValueError: no licence
          net.py:7, in Net.__init__
            7 | raise ValueError('no licence')

        net.py was not transpiled; nothing was written.
        """,
    )


def test_forward_raises(command: Command) -> None:
    result = command(NET.replace("torch.ones(2, 3)", "torch.ones(2, 5)"))
    assert result.exit_code == 1
    lines = result.stderr.splitlines()
    assert lines[0].startswith("Error: torch.export cannot trace the model: ")
    assert "net.py:10, in Net.forward" in lines[1]


def test_syntax_error(command: Command) -> None:
    assert_fails(
        command(NET.replace("def forward(self, x):", "def forward(self, x)")),
        1,
        """
        Error: Syntax error: expected ':'
          net.py:9
            9 | def forward(self, x)

        net.py was not transpiled; nothing was written.
        """,
    )


def test_pickled_model(command: Command) -> None:
    torch.save(torch.nn.Linear(2, 2), "model.pt")
    assert_fails(
        command(model="model.pt"),
        1,
        """
        Error: model.pt is refused: a pickled model can run any code when it is opened
          Hint: save the traced model: torch.export.save(torch.export.export(model.eval(), args), 'model.pt2')
          Hint: or give the model.py that defines the class, and the weights with --weights

        model.pt was not transpiled; nothing was written.
        """,
    )


# --- weights ------------------------------------------------------------------------------------------------


def test_every_wrong_weight_at_once(command: Command) -> None:
    save_file({"fc.weight": np.ones((4, 5), "f4"), "fc.scale": np.ones(4, "f4")}, "w.safetensors")
    assert_fails(
        command(NET, "--weights", "w.safetensors"),
        1,
        """
        Error: Unexpected weight 'fc.scale' (float32[4])
        Error: Weight 'fc.weight' is float32[4, 5], the model has float32[4, 3]
        Error: Missing weight 'fc.bias': float32[4]

        net.py was not transpiled, for 3 reasons; nothing was written.
        """,
    )


def test_unreadable_weights(command: Command) -> None:
    Path("w.safetensors").write_bytes(b"\xff" * 64)
    result = command(NET, "--weights", "w.safetensors")
    assert result.exit_code == 1
    assert "w.safetensors" in result.stderr.splitlines()[0]


def test_weights_that_need_unsafe_unpickling(command: Command) -> None:
    torch.save({"model": torch.nn.Linear(3, 4)}, "w.pt")
    result = command(NET, "--weights", "w.pt")
    assert result.exit_code == 1
    assert "w.pt is refused" in result.stderr
    assert "safetensors.torch.save_file" in result.stderr


def test_no_weights_file(command: Command) -> None:
    result = command(NET, "--weights", "nowhere.pt")
    assert_fails(result, 2, "Error: nowhere.pt does not exist.\n\nTry 'transpile --help'.\n")
