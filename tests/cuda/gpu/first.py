"""`python -m tests.cuda.gpu.first FOLDER GIVEN`: seconds of making the model of a package and of its first call, with
inputs and weights that a file has. Without PyTorch, as where packages are used."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

import numpy as np

from transpiler.loading import load_package


def main() -> None:
    folder, given = Path(sys.argv[1]), dict(np.load(sys.argv[2]))
    inputs = [given[f"input {place}"] for place in range(sum(key.startswith("input ") for key in given))]
    weights = {key.removeprefix("weight "): array for key, array in given.items() if key.startswith("weight ")}
    start = time.perf_counter()
    model = load_package(folder, folder.name).Model(weights=weights)
    loaded = time.perf_counter()
    model.infer(*inputs)
    called = time.perf_counter()
    model.close()
    print(json.dumps({"load": loaded - start, "first_call": called - loaded}))


if __name__ == "__main__":
    main()
