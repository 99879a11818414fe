"""Tensors on the device in and out, streams: over a stand-in that does what a stream has to do when somebody waits for
it, and not before, so that every missing wait gives wrong numbers."""

from __future__ import annotations

import gc
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from tests.cuda import standin
from tests.cuda.foreign import Library
from tests.models.on_device import Odd, drawn
from tests.models.redraw import redraw
from tests.models.test_state import Counters
from transpiler import transpile
from transpiler.api import Package

pytestmark = pytest.mark.usefixtures("driver")


@pytest.fixture(scope="module")
def package(standin_log: Path, tmp_path_factory: pytest.TempPathFactory) -> Package:
    torch.manual_seed(3)
    module = network()
    batch = torch.export.Dim("batch", min=1, max=64)
    return transpile(
        module, (torch.zeros(4, 6),), target="cuda", arch="sm_80", name="tiny", dynamic_shapes=({0: batch},),
        out=tmp_path_factory.mktemp("tiny"),
    )  # fmt: skip


def x_of(batch: int, seed: int = 0) -> Any:
    return np.random.default_rng(seed).standard_normal((batch, 6), np.float32)


def test_tensors_in_and_out(package: Package) -> None:
    with package.load() as model, Library(model) as other:
        x = x_of(5)
        want = model(x)
        tensor = other.tensor(x)
        y = model(tensor)
        assert (y.shape, y.dtype, y.device, y.nbytes) == ((5, 6), "float32", "cuda:0", 120)
        assert tensor.exports == 1
        np.testing.assert_array_equal(other.read(y), want)
        np.testing.assert_array_equal(np.asarray(y), want)
        # An output is an input again, and nobody has waited.
        np.testing.assert_array_equal(other.read(model(model(other.tensor(x)))), model(want))


@pytest.mark.parametrize("kind", ["number", "torch", "cupy", "protocol"])
def test_a_stream_of_the_caller(package: Package, kind: str) -> None:
    with package.load() as model, Library(model) as other:
        handle, source = other.stream(), other.stream()
        given: Any = {
            "number": handle,
            "torch": SimpleNamespace(cuda_stream=handle),
            "cupy": SimpleNamespace(ptr=handle),
            "protocol": SimpleNamespace(__cuda_stream__=lambda: (0, handle)),
        }[kind]
        x = x_of(3)
        # Filled on one stream, computed on another, read on the first: everything waits as DLPack says.
        y = model(other.tensor(x, source), stream=given)
        assert y.stream == handle
        np.testing.assert_array_equal(other.read(y, source), model(x))
        # Arrays of the host are taken, too.
        z = model(x, stream=given)
        np.testing.assert_array_equal(other.read(z, handle), model(x))
        del y, z
        gc.collect()
        other.destroy(handle)
        other.destroy(source)


def test_two_streams_take_turns(package: Package) -> None:
    with package.load() as model, Library(model) as other:
        streams = [other.stream(), other.stream()]
        inputs = [x_of(7, seed) for seed in range(8)]
        outputs = [
            model(other.tensor(x, streams[index % 2]), stream=streams[index % 2]) for index, x in enumerate(inputs)
        ]
        for index in (7, 0, 3, 6, 1, 2, 5, 4):
            np.testing.assert_array_equal(other.read(outputs[index], streams[index % 2]), model(inputs[index]))
        # From the host, whose memory may change as soon as the call has returned.
        x = inputs[0].copy()
        y = model(x, stream=streams[0])
        x[...] = np.nan
        z = model(inputs[1], stream=streams[1])
        np.testing.assert_array_equal(other.read(z, streams[1]), model(inputs[1]))
        np.testing.assert_array_equal(other.read(y, streams[0]), model(inputs[0]))
        del outputs, y, z
        gc.collect()
        for stream in streams:
            other.destroy(stream)


def test_threads_on_streams_of_their_own(package: Package) -> None:
    with package.load() as model, Library(model) as other:

        def work(seed: int) -> bool:
            stream = other.stream()
            results = []
            for turn in range(5):
                x = x_of(1 + (seed + turn) % 4, 10 * seed + turn)
                y = model(other.tensor(x, stream), stream=stream)
                results.append(bool((other.read(y, stream) == model(x)).all()))
                del y
            other.destroy(stream)
            return all(results)

        with ThreadPoolExecutor(3) as pool:
            assert all(pool.map(work, range(6)))


def test_outputs_live_as_long_as_somebody_has_them(package: Package) -> None:
    with package.load() as model, Library(model) as other:
        want = model(x_of(2))
        y = model(x_of(2), stream=1)
        address = y.address
        capsule = y.__dlpack__()
        del y
        gc.collect()
        held = other.dlpack.imported(capsule)
        assert held.address == address  # no copy
        assert len(other.dlpack._given) == 1
        array = other.arrays.DeviceArray(other.device, address, "float32", (2, 6), 1, held)
        np.testing.assert_array_equal(array.numpy(), want)
        del held, array
        gc.collect()
        assert not other.dlpack._given
        # A capsule that nobody took gives its tensor back, too; one that was taken is taken once.
        y = model(x_of(2), stream=1)
        y.__dlpack__()
        assert not other.dlpack._given
        capsule = y.__dlpack__()
        other.dlpack.imported(capsule)
        with pytest.raises(ValueError, match="PyCapsule"):
            other.dlpack.imported(capsule)
        gc.collect()
        assert not other.dlpack._given
        for wrong in ({"copy": True}, {"dl_device": (1, 0)}):
            with pytest.raises(BufferError, match="without a copy"):
                y.__dlpack__(**wrong)


def test_capsules_of_the_next_version(package: Package) -> None:
    """Read-only ones, too: nobody writes to inputs."""
    with package.load() as model, Library(model) as other:
        tensor, unknown = other.versioned(x_of(3)), other.versioned(x_of(3), major=2)
        np.testing.assert_array_equal(other.read(model(tensor)), model(x_of(3)))
        with pytest.raises(TypeError, match=r"input: this Versioned cannot be read: DLPack 2\.2 is not known, 1 is"):
            model(unknown)
        assert unknown.given == 1  # the capsule is still its owner's
        model(tensor)
        # The next call of these sizes finds out that the device has passed it.
        other.__exit__()
        gc.collect()
        model(x_of(3), stream=1)
        gc.collect()
        assert tensor.given == 0
        tensor._kept_alive.clear()
        unknown._kept_alive.clear()


@pytest.mark.parametrize("device", ["cuda:0", "cuda:1"])
def test_managed_memory_and_a_library_that_looks_at_the_device(package: Package, device: str) -> None:
    with package.load(device=device) as model, Library(model) as other:
        assert other.device.number == int(device[-1])
        y = model(other.managed(x_of(3)))
        assert y.device == device
        np.testing.assert_array_equal(other.read(y), model(x_of(3)))


def test_a_stream_that_is_captured(package: Package) -> None:
    with package.load() as model, Library(model) as other:
        stream, driver = other.stream(), other.device.driver
        with other.device.current():
            driver.cuStreamBeginCapture(stream, driver.CUstreamCaptureMode.CU_STREAM_CAPTURE_MODE_GLOBAL)
            with pytest.raises(ValueError, match="stream: is being captured"):
                model(other.tensor(x_of(2)), stream=stream)
            _, graph = driver.cuStreamEndCapture(stream)
            driver.cuGraphDestroy(graph)
        y = model(other.tensor(x_of(2)), stream=stream)
        np.testing.assert_array_equal(other.read(y, stream), model(x_of(2)))
        del y
        gc.collect()
        other.destroy(stream)


def test_outputs_that_do_not_fit_into_memory(
    standin_log: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Calls that wait make room; where that is not enough the state is as it was."""
    torch.manual_seed(4)
    package = transpile(
        Counters().eval(), (torch.randn(3),), target="cuda", arch="sm_80", name="counters", out=tmp_path
    )
    x = np.array([1, -2, 3], np.float32)
    with package.load() as model, Library(model) as other:

        def allow_no_more() -> None:
            with other.device.current():
                _, free, total = other.device.driver.cuMemGetInfo()
            monkeypatch.setenv("STANDIN_MEMORY", str(total - free))

        reference = model.session()
        model(x)  # its recording waits
        kept = [model(x, stream=1)]
        allow_no_more()
        kept.append(model(x, stream=1))
        assert len(model._running()._idle._waiting) == 1
        allow_no_more()
        with pytest.raises(MemoryError, match="too little memory for an output of 12 bytes"):
            model(x, stream=1)
        monkeypatch.delenv("STANDIN_MEMORY")
        kept.append(model(x, stream=1))
        for _ in range(4):
            want = reference(x)
        for ours, theirs in zip(kept[-1], want, strict=True):
            np.testing.assert_array_equal(other.read(ours), theirs)


def test_weights_on_a_device(package: Package) -> None:
    """As numpy copies them (JAX), or their library does (PyTorch, CuPy)."""
    with package.load() as model, Library(model) as other:
        want = model(x_of(3))
        weights = state_dict()
        model.load_weights({name: array * 2 for name, array in weights.items()})
        assert not np.array_equal(model(x_of(3)), want)
        tensors: dict[str, Any] = {name: other.tensor(array).array for name, array in weights.items()}
        first, second, *_ = tensors
        tensors[first] = SimpleNamespace(__dlpack_device__=lambda: (2, 0), cpu=lambda: weights[first])
        tensors[second] = SimpleNamespace(__dlpack_device__=lambda: (2, 0), get=lambda: weights[second])
        model.load_weights(tensors)
        np.testing.assert_array_equal(model(x_of(3)), want)


def state_dict() -> dict[str, Any]:
    torch.manual_seed(3)
    return {name: value.numpy() for name, value in network().state_dict().items()}


def network() -> nn.Module:
    return nn.Sequential(nn.Linear(6, 9), nn.ReLU(), nn.Linear(9, 6), nn.Softmax(-1)).eval()


def test_what_does_not_fit_is_refused(package: Package) -> None:
    with (
        package.load() as model,
        type(model)(device="cuda:1") as there,
        Library(model) as other,
        Library(there) as away,
    ):
        with pytest.raises(ValueError, match="is on cuda:1, the model on cuda:0"):
            model(away.tensor(x_of(2)))
        with pytest.raises(TypeError, match="expected dtype float32, got float64"):
            model(other.tensor(np.zeros((2, 6))))
        with pytest.raises(ValueError, match=r"expected shape \(batch, 6\), got \(2, 5\)"):
            model(other.tensor(np.zeros((2, 5), np.float32)))
        with pytest.raises(ValueError, match=r"dimension 0 \(batch\) is 65"):
            model(other.tensor(x_of(65)))
        with pytest.raises(ValueError, match="is not contiguous"):
            model(other.tensor(x_of(2), strides=(1, 2)))
        with pytest.raises(TypeError, match="expected a CUDA stream or its handle, got str"):
            model(x_of(2), stream="fast")
        with pytest.raises(ValueError, match="stream: -1 is no stream"):
            model(x_of(2), stream=-1)
        with type(model)(native=False) as stepwise:
            with pytest.raises(TypeError, match="kernel by kernel a model takes arrays in CPU memory"):
                stepwise(other.tensor(x_of(2)))
            with pytest.raises(TypeError, match="and no stream"):
                stepwise(x_of(2), stream=1)
        assert model(x_of(2)).shape == (2, 6)


def test_data_that_do_not_fit_are_found_on_streams(standin_log: Path, tmp_path: Path) -> None:
    rows = torch.arange(4) % 7
    package = transpile(
        redraw(Odd().eval(), 1),
        (torch.randn(4, 3, 11, 13), rows),
        target="cuda",
        arch="sm_80",
        name="odd",
        out=tmp_path,
    )
    x, row = drawn(4)
    with package.load() as model, Library(model) as other:
        want = model(x, row)
        row[1] += 7
        with pytest.raises(IndexError, match="index out of bounds in kernel"):
            model(other.tensor(x), row)
        row[1] -= 7
        for ours, theirs in zip(model(x, other.tensor(row)), want, strict=True):
            np.testing.assert_array_equal(other.read(ours), theirs)


def test_a_state_is_used_in_order_on_whatever_streams(standin_log: Path, tmp_path: Path) -> None:
    torch.manual_seed(4)
    package = transpile(
        Counters().eval(), (torch.randn(3),), target="cuda", arch="sm_80", name="counters", out=tmp_path
    )
    x = np.array([1, -2, 3], np.float32)
    with package.load() as model, Library(model) as other:
        reference = model.session()
        streams = [other.stream(), other.stream(), 1]
        for turn in range(6):
            want = reference(x * turn)
            got = model(other.tensor(x * turn, streams[turn % 3]), stream=streams[turn % 3])
            if turn in (2, 5):
                for ours, theirs in zip(model.infer(x), reference.infer(x), strict=True):
                    np.testing.assert_array_equal(ours, theirs)
        del got, want
        for name in reference.state:
            np.testing.assert_array_equal(model.state[name], reference.state[name])
        gc.collect()
        for stream in streams[:2]:
            other.destroy(stream)


def test_a_model_may_go_while_the_device_is_at_it(package: Package) -> None:
    model = package.load()
    other = Library(model)
    want = model(x_of(3))
    y = model(x_of(3), stream=1)
    model.close()
    del model
    gc.collect()
    np.testing.assert_array_equal(other.read(y), want)
    del y, other
    gc.collect()
    assert standin.left() == ""


CONSUMER = r"""
#include <cstdio>
struct Object;
extern "C" {
Object *PyCapsule_New(void *, const char *, void (*)(Object *));
void *PyCapsule_GetPointer(Object *, const char *);
int PyCapsule_SetName(Object *, const char *);
int Py_IsInitialized();
struct Managed { char tensor[48]; void *context; void (*deleter)(Managed *); };

static void give_back(Object *taken) {
  auto *managed = static_cast<Managed *>(PyCapsule_GetPointer(taken, "taken"));
  managed->deleter(managed);
  puts((void *)managed->deleter == (void *)Py_IsInitialized ? "given back" : "a function of Python is called");
}
__attribute__((visibility("default"))) Object *take(Object *capsule) {
  void *managed = PyCapsule_GetPointer(capsule, "dltensor");
  PyCapsule_SetName(capsule, "used_dltensor");
  return PyCapsule_New(managed, "taken", give_back);
}
}
"""


def test_tensors_that_outlive_the_model_and_its_modules(package: Package) -> None:
    """Of a library in C, whose objects go last of all, when no function of Python can be called any more."""
    consumer = standin.build(CONSUMER, "consumer.so")
    script = f"""import builtins, ctypes
import numpy as np
from tiny import Model
take = ctypes.PyDLL({str(consumer)!r}).take
take.restype, take.argtypes = ctypes.py_object, [ctypes.py_object]
outputs = [Model()(np.ones((3, 6), np.float32), stream=1) for _ in range(2)]
builtins.kept = [take(outputs[0].__dlpack__()), outputs[1].__dlpack__()]
print(len(builtins.kept), flush=True)
"""
    environment = os.environ | {"PYTHONPATH": str(package.path / "src")}
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, env=environment, check=False)
    assert (done.returncode, done.stdout.split(), done.stderr) == (0, ["2", "given", "back"], "")
