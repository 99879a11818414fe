"""`python exercise.py PACKAGE NAME [ROUNDS]`: one model in several threads at once, with everything that may happen
meanwhile: other sessions, new weights, another number of threads, errors, models that come and go. Runs where there is
nothing but numpy; results must be those of a lone call."""

import ctypes
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

package, name = Path(sys.argv[1]), sys.argv[2]
rounds = int(sys.argv[3]) if len(sys.argv) > 3 else 8
sys.dont_write_bytecode = True
sys.path[:0] = [str(package / "src"), str(package / "tests")]
Model: Any = __import__(name).Model
recorded: Any = __import__("_cases")


def bits(results: Any) -> list[bytes]:
    return [np.ascontiguousarray(array).tobytes() for array in results]


def main() -> None:
    model = Model(threads=2)
    inputs = [case.inputs() for case in recorded.ALL if case.function is recorded.CASES][:4]
    expected = [bits(Model(threads=1).session().infer(*arrays)) for arrays in inputs]
    weights = package / "src" / name / "weights.cpu.safetensors"

    def call(index: int) -> None:
        for turn in range(rounds):
            chosen = (index + turn) % len(inputs)
            session = model.session()
            assert bits(session.infer(*inputs[chosen])) == expected[chosen], f"thread {index}, turn {turn}"
            if index == 0:
                model.load_weights(weights)
            elif index == 1:
                model.threads = 1 + turn % 3
            elif index == 2:
                with Model(threads=2) as other:
                    assert bits(other.infer(*inputs[chosen])) == expected[chosen]

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(call, range(4)))
        # The C library finds its kernels on the first call: four threads make it at once.
        native = ctypes.CDLL(str(package / "src" / name / "lib" / f"lib{name}.so"))
        list(pool.map(lambda index: through_c(native, inputs, expected, index), range(4)))
    print("done")


def through_c(native: ctypes.CDLL, inputs: list[list[Any]], expected: list[list[bytes]], index: int) -> None:
    """Open the model in the package, run it, and take it down, as a C program does."""
    last_error, start, run, destroy = (
        getattr(native, f"{name}_{function}") for function in ("last_error", "open", "run", "destroy")
    )
    last_error.restype = ctypes.c_char_p
    handle = ctypes.c_void_p()
    failed = start(None, 2, ctypes.byref(handle))
    assert not failed, last_error()
    for turn in range(rounds):
        chosen = (index + turn) % len(inputs)
        arrays = [np.ascontiguousarray(array) for array in inputs[chosen]]
        outputs = [np.zeros(len(content), np.uint8) for content in expected[chosen]]
        failed = run(handle, 0, None, pointers(arrays), pointers(outputs), None)
        assert not failed, last_error()
        assert [array.tobytes() for array in outputs] == expected[chosen], f"C, thread {index}, turn {turn}"
    assert run(handle, 7, None, None, None, None) == 1, "there is no such function"
    assert b"function 7 does not exist" in last_error()
    destroy(handle)


def pointers(arrays: list[Any]) -> Any:
    return (ctypes.c_void_p * len(arrays))(*[array.ctypes.data for array in arrays])


main()
