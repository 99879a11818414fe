"""The `target` fixture: conformance tests never name a target.

`TRANSPILE_TEST_ISA` narrows the CPU's instruction sets; by default every one that this machine has is tested by the
full run, and the best one by the quick run.
"""

from __future__ import annotations

import os
import tomllib

import pytest

from transpiler.resources import tree
from transpiler.target import Target, cpu_features, load_target


def machine_isas() -> list[str]:
    """Instruction sets of the CPU target that this machine can run, best first."""
    wanted = os.environ.get("TRANSPILE_TEST_ISA")
    facts = tomllib.loads((tree("targets") / "cpu.toml").read_text())["isa"]
    have = cpu_features()
    names = [item["name"] for item in facts if have.issuperset(item["features"])]
    return [name for name in names if wanted is None or name in wanted.split(",")]


def target_params() -> list[object]:
    isas = machine_isas()
    return [
        pytest.param(isa, id=f"cpu-{isa}", marks=() if position == 0 else pytest.mark.slow)
        for position, isa in enumerate(isas)
    ]


@pytest.fixture(scope="session", params=target_params())
def target(request: pytest.FixtureRequest) -> Target:
    return load_target("cpu", request.param)
