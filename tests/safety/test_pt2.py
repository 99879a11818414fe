"""`.pt2` files that would run code in torch's own loader: refused, and nothing of them is run."""

import io
import json
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.safety.archives import CONSTANTS, EXAMPLES, MODEL, WEIGHTS, Net, changed, records, saved, write
from transpiler import transpile
from transpiler.errors import TranspileError
from transpiler.exported_file import load_exported_program
from transpiler.exported_text import check_expression, check_nesting, check_operator

RUN = "__import__('pathlib').Path({!r}).touch()"


class Evil:
    """Touches a file when it is unpickled."""

    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.canary,)


@pytest.fixture
def canary(tmp_path: Path) -> Path:
    return tmp_path / "canary"


def refused(path: Path, canary: Path) -> TranspileError:
    with pytest.raises(TranspileError) as caught:
        load_exported_program(path)
    assert not canary.exists(), "code in the file was run"
    assert str(caught.value).startswith(f"{path.name} is ")
    return caught.value


def test_an_honest_file_is_read(tmp_path: Path) -> None:
    path = write(tmp_path / "net.pt2", records())
    x, scale = torch.randn(6, 4), torch.tensor(2.0)
    with torch.no_grad():
        got = load_exported_program(path).module()(x, scale=scale)["y"]
    torch.manual_seed(0)
    torch.testing.assert_close(got, Net().eval()(x, scale=scale)["y"].detach())


def test_it_is_transpiled(tmp_path: Path) -> None:
    (tmp_path / "net.pt2").write_bytes(saved())
    x = np.random.default_rng(0).standard_normal((10, 4), np.float32)
    result = transpile(tmp_path / "net.pt2", out=tmp_path).load()(x, scale=np.float32(3))
    torch.manual_seed(0)
    with torch.no_grad():
        expected = Net().eval()(torch.from_numpy(x), scale=torch.tensor(3.0))
    np.testing.assert_allclose(result["half"], expected["half"].numpy(), rtol=1e-5, atol=1e-6)


def _nodes(data: Any) -> Any:
    return data["graph_module"]["graph"]["nodes"]


def _call_system(data: Any, canary: Path) -> None:
    node = _nodes(data)[1]
    node["target"] = "torch.os.system"
    node["inputs"] = [{"name": "", "arg": {"as_string": f"touch {canary}"}, "kind": 1}]


def _evaluate(data: Any, canary: Path) -> None:
    data["graph_module"]["graph"]["tensor_values"]["x"]["sizes"][0]["as_expr"]["expr_str"] = RUN.format(str(canary))


def _name_a_parameter(data: Any, canary: Path) -> None:
    text = json.dumps(data).replace('"name": "x"', json.dumps({"name": f"x={RUN.format(str(canary))}"})[1:-1])
    data.update(json.loads(text))


def _guard(data: Any, canary: Path) -> None:
    data["guards_code"] = [RUN.format(str(canary))]
    data["graph_module"]["graph"]["nodes"][1]["target"] = "torch.os.system"


def _rename_weight(data: Any, canary: Path) -> None:
    name = f'l", {RUN.format(str(canary))})#'.replace(".", "")
    data.update(json.loads(json.dumps(data).replace('"linear.weight"', json.dumps(name))))


def _enumeration(data: Any, canary: Path) -> None:
    call = data["graph_module"]["module_call_graph"][0]["signature"]
    context = json.dumps([{"__enum__": True, "fqn": "os:X", "name": "y"}])
    call["out_spec"] = json.dumps([1, {"type": "builtins.dict", "context": context, "children_spec": []}])


def _keyword(data: Any, canary: Path) -> None:
    call = data["graph_module"]["module_call_graph"][0]["signature"]
    call["in_spec"] = call["in_spec"].replace("scale", f"scale=({RUN.format(str(canary))})".replace("'", "\\\\u0027"))


def _write_a_file(data: Any, canary: Path) -> None:
    node = _nodes(data)[1]
    node["target"] = "torch.ops.aten.from_file.default"
    node["inputs"] = [
        {"name": "filename", "arg": {"as_string": str(canary)}, "kind": 1},
        {"name": "shared", "arg": {"as_bool": True}, "kind": 1},
        {"name": "size", "arg": {"as_int": 64}, "kind": 1},
    ]


@pytest.mark.parametrize(
    "change",
    [
        _call_system, _evaluate, _name_a_parameter, _guard, _rename_weight, _enumeration, _keyword, _write_a_file,
    ],
)  # fmt: skip
def test_code_in_the_program(tmp_path: Path, canary: Path, change: Callable[[Any, Path], None]) -> None:
    path = changed(tmp_path / "net.pt2", MODEL, lambda data: change(data, canary))
    assert refused(path, canary).code == "unsafe-pt2"


def test_guards_are_not_run(tmp_path: Path, canary: Path) -> None:
    def change(data: Any) -> None:
        data["guards_code"] = [RUN.format(str(canary))]

    program = load_exported_program(changed(tmp_path / "net.pt2", MODEL, change))
    program.module()(torch.randn(6, 4), scale=torch.tensor(2.0))
    assert not canary.exists()


def pickled(canary: Path) -> bytes:
    buffer = io.BytesIO()
    torch.save((Evil(canary),), buffer)
    return buffer.getvalue()


def test_pickled_examples(tmp_path: Path, canary: Path) -> None:
    error = refused(write(tmp_path / "net.pt2", {**records(), EXAMPLES: pickled(canary)}), canary)
    assert "its example inputs hold more than tensors" in str(error)
    assert "program.example_inputs = None" in error.problems[0].hints[0]


@pytest.mark.parametrize(
    ("config", "name", "record"),
    [(WEIGHTS, "linear.weight", "data/weights/weight_0"), (CONSTANTS, "steps", "data/constants/tensor_0")],
)
def test_pickled_weights(tmp_path: Path, canary: Path, config: str, name: str, record: str) -> None:
    content = records()
    data = json.loads(content[config])
    data["config"][name]["use_pickle"] = True
    content |= {config: json.dumps(data).encode(), record: pickled(canary)}
    assert f"{name!r} is pickled" in str(refused(write(tmp_path / "net.pt2", content), canary))


@pytest.mark.parametrize("record", ["custom_obj_0", "opaque_obj_0", "../../models/model.json", "tensor_9"])
def test_objects_for_constants(tmp_path: Path, canary: Path, record: str) -> None:
    content = records()
    data = json.loads(content[CONSTANTS])
    data["config"]["steps"]["path_name"] = record
    content[CONSTANTS] = json.dumps(data).encode()
    assert f"'steps' is kept in {record!r}" in str(refused(write(tmp_path / "net.pt2", content), canary))


@pytest.mark.parametrize(
    "record",
    ["data/aotinductor/model/a.so", "data/constants/custom_obj_0", "models/other.json", "data/weights/model.pt"],
)
def test_records_that_have_no_place(tmp_path: Path, canary: Path, record: str) -> None:
    path = write(tmp_path / "net.pt2", {**records(), record: pickle.dumps(Evil(canary))})
    assert f"it holds {record!r}" in str(refused(path, canary))


def test_the_old_format(tmp_path: Path, canary: Path) -> None:
    """torch.export.load falls back to it, and unpickles it."""
    path = tmp_path / "net.pt2"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("version", "8.20")
        for name in ("serialized_state_dict", "serialized_constants", "serialized_example_inputs"):
            archive.writestr(f"{name}.pt", pickled(canary))
        archive.writestr("serialized_exported_program.json", records()[MODEL])
    refused(path, canary)


def test_a_bomb(tmp_path: Path, canary: Path) -> None:
    content = {**records(), "data/weights/weight_0": bytes(50_000_000)}
    path = write(tmp_path / "net.pt2", content, zipfile.ZIP_DEFLATED)
    assert "its records are larger than the file" in str(refused(path, canary))


@pytest.mark.parametrize(("size", "message"), [(2**40, "elements"), (-3, "is not a size"), (2**70, "is not a size")])
def test_shapes_of_weights(tmp_path: Path, canary: Path, size: int, message: str) -> None:
    def change(data: Any) -> None:
        data["config"]["rows"]["tensor_meta"]["sizes"][0]["as_int"] = size

    assert message in str(refused(changed(tmp_path / "net.pt2", WEIGHTS, change), canary))


@pytest.mark.parametrize("size", [2**40, -1])
def test_shapes_of_values(tmp_path: Path, canary: Path, size: int) -> None:
    def change(data: Any) -> None:
        data["graph_module"]["graph"]["tensor_values"]["linear"]["sizes"][1]["as_int"] = size

    assert refused(changed(tmp_path / "net.pt2", MODEL, change), canary).code == "bad-pt2"


@pytest.mark.parametrize("kept", [0, 1, 100, 2000, 0.5, 0.99])
def test_truncated(tmp_path: Path, canary: Path, kept: float) -> None:
    data = saved()
    path = tmp_path / "net.pt2"
    path.write_bytes(data[: kept if isinstance(kept, int) else int(kept * len(data))])
    assert refused(path, canary).code == "bad-pt2"


@pytest.mark.parametrize(
    "text",
    [
        "s77", "eval('1')", "Symbol('os')", "Integer(10**9)", "Pow(Integer(9), Integer(999))", "s0.__class__",
        "Pow(Integer(9), Pow(Integer(9), Integer(9)))", "LShift(Integer(1), Integer(9999))", "[1][0]", "lambda: 0", "",
        "Symbol('s1', exec=True)", "Integer('1')", "(" * 5000 + ")" * 5000, "exit()", "FloorDiv(*(1, 2))", "x" * 20000,
    ],
)  # fmt: skip
def test_what_is_no_size(text: str) -> None:
    with pytest.raises(TranspileError) as caught:
        check_expression(text)
    assert caught.value.code == "unsafe-pt2"


@pytest.mark.parametrize(
    "text",
    [
        "Symbol('s77', positive=True, integer=True)", "Integer(-3)", "Integer(12)", "true",
        "FloorDiv(Add(Symbol('s0', integer=True), Integer(-1)), Integer(2))",
        "Max(Integer(1), Mul(Integer(2), Pow(Symbol('u0', integer=True), Integer(2))))",
        "Equality(Mod(Symbol('s1', integer=True), Integer(4)), Integer(0))", "Float('1.5', precision=53)",
    ],
)  # fmt: skip
def test_what_is_a_size(text: str) -> None:
    check_expression(text)


@pytest.mark.parametrize(
    "target",
    [
        "torch.os.system", "torch.load", "torch.hub.load", "_operator.attrgetter", "_operator.methodcaller", "math.pow",
        "torch.ops.aten.save.default", "torch.ops.load_library", "torch.ops.aten.from_file.default", "eval",
        "torch.ops.debugprims.load_tensor.default", "torch.ops.aten.__class__.mro", "#x:y", "torch.ops.aten.nothing",
        "torch.ops.higher_order.triton_kernel_wrapper_mutation", "torch.ops.aten.relu.default.__globals__",
        "torch.ops.prim.rpc_sync.default", "torch.ops.aten.relu.default\n", "",
    ],
)  # fmt: skip
def test_what_is_no_operator(target: str) -> None:
    with pytest.raises(TranspileError) as caught:
        check_operator(target)
    assert caught.value.code == "unsafe-pt2"


def test_what_is_an_operator() -> None:
    for target in ("torch.ops.aten.relu.default", "_operator.floordiv", "torch.ops.aten.sym_size.int", "torch.sym_max"):
        check_operator(target)


@pytest.mark.parametrize(
    ("kind", "context"),
    [
        ("os.environ", "null"),
        ("collections.defaultdict", {"default_factory_module": "os", "default_factory_name": "system"}),
        ("builtins.list", '[{"__enum__": true, "fqn": "os:environ", "name": "x"}]'),
    ],
)
def test_nesting(kind: str, context: Any) -> None:
    with pytest.raises(TranspileError):
        check_nesting(json.dumps([1, {"type": kind, "context": context, "children_spec": []}]))
