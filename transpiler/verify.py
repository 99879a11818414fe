"""Records what PyTorch computes: its outputs, the state it leaves, values inside the model.

PyTorch is reached only through the callables that `record` is given; nothing here imports it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import numpy as np

from transpiler.cases import DRAWS, Argument, Drawn, State, draw_inputs, draw_state
from transpiler.checks import Expected, comparable, is_float, part_norms, same_kind, tolerance_of
from transpiler.dims import evaluate
from transpiler.draw import Array, numpy_dtype, sample_positions, seed_of
from transpiler.errors import TranspileError
from transpiler.moments import moments
from transpiler.recorded import Eager, Lower, OutputSpec, Recorded, Recording, Reference, Reload, Rounded, Step, Taps

# Outputs of up to WHOLE elements are kept whole; of larger ones a sample, and the norms of all their parts.
WHOLE = 65536
SAMPLE = 16384
PARTS = 256
TAP_SAMPLE = 64
# Runs with noise that decide which positions of a discrete model's outputs are compared.
SHAKES = 16


def expect(
    name: str,
    dtype: str,
    torch: Array,
    float64: Array,
    *,
    whole: int,
    sample: int,
    parts: int,
    precision: str = "",
) -> Expected:
    """What to keep of a tensor: all of it up to `whole` elements, else `sample` of them and `parts` norms."""
    torch = np.asarray(torch, dtype=numpy_dtype(dtype))
    double = np.asarray(float64, dtype=np.float64 if is_float(dtype) else torch.dtype)
    if torch.shape != double.shape:
        raise ValueError(f"{name}: PyTorch gives shape {torch.shape}, its float64 graph {double.shape}")
    with np.errstate(all="ignore"):
        usable = comparable(torch, double)
        tolerance = tolerance_of(torch, double, dtype, precision)
        excluded = int(np.count_nonzero(~usable & ~same_kind(torch, double)))
        flat, flat64 = torch.reshape(-1), double.reshape(-1)
        positions = norms = requested = None
        if torch.size > whole:
            requested = sample
            positions = sample_positions(seed_of(name), torch.size, sample)
            norms = part_norms(double, usable, parts)
            flat, flat64 = flat[positions], flat64[positions]
    return Expected(
        name, dtype, torch.shape, flat.copy(), flat64.copy(), tolerance, excluded, positions, norms, requested,
        precision,
    )  # fmt: skip


def _expect_output(spec: OutputSpec, torch: Array, float64: Array, precision: str) -> Expected:
    sizes = {"whole": WHOLE, "sample": SAMPLE, "parts": PARTS}
    return expect(spec.name, spec.dtype, torch, float64, **sizes, precision=precision)


def record(
    arguments: Sequence[Argument],
    examples: Sequence[Array],
    outputs: Sequence[OutputSpec],
    *,
    eager: Eager,
    reference: Reference,
    state: Mapping[str, Array],
    aliases: Mapping[str, str] | None = None,
    taps: Mapping[str, str] | None = None,
    draws: int = DRAWS,
    sizes: Sequence[tuple[str, Mapping[str, int]]] = (),
    function: str = "forward",
    initial: Callable[[Mapping[str, Array]], Mapping[str, Array]] = lambda weights: {},
    lower: Lower | None = None,
    tap_dtypes: Mapping[str, str] | None = None,
) -> Recording:
    """Run PyTorch on every case.

    Args:
        eager, reference: `functools.partial(run_eager, captured)` and the same of `run_reference`.
        state: the model's state_dict; `aliases` maps tied keys to the key that stores the tensor.
        taps: module path -> name of the FX value that is its output.
        sizes: names and values of the sizes that vary, a case each.
        function: which one of the program's functions this is.
        initial: the initial content of the program's states, by key, for given weights.
        lower: the precision of the package, if it is lower than that of the model.
        tap_dtypes: of taps that the package holds in another type than the model.

    Raises:
        TranspileError: "dynamic-shape": the graph that was traced is not the module at some size.
        Exception: whatever PyTorch raises for the user's own example. A drawn case that it refuses is
        dropped.
    """
    inputs = draw_inputs(arguments, examples, draws, sizes)
    cases: list[Recorded] = []
    dropped: list[str] = []
    at = dict(sizes)
    begin = initial(state)
    states = state_specs(begin)
    run = _Run((*outputs, *states), eager, reference, lower)
    for drawn in inputs.cases:
        try:
            if drawn.resized:
                _check_traced(drawn, at[drawn.name], outputs, eager, reference)
            found = run(drawn.arrays, None, _pair(begin))
            cases.append(Recorded(drawn, found[: len(outputs)], found[len(outputs) :]))
        except Exception as error:
            if drawn.name == "example" or isinstance(error, TranspileError):
                raise
            dropped.append(f"{drawn.name}: {type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}")

    # A drawn case shows more than an example that may be all zeros.
    chosen = next((case for case in cases if case.name.startswith("drawn")), cases[0])
    return Recording(
        tuple(arguments),
        inputs,
        tuple(cases),
        _reload(run, chosen, draw_state(state, aliases or {}), initial) if state else None,
        _taps(chosen.drawn, reference, taps, lower, tap_dtypes or {}) if taps else None,
        tuple(dropped),
        function,
        states,
    )


def record_random(recording: Recording, run: Callable[..., Sequence[Array]]) -> Recording:
    """The recording with the moments of `run(inputs, seed=)`, PyTorch with its own numbers, on one case."""
    chosen = next((case for case in recording.cases if case.name.startswith("drawn")), recording.cases[0])

    def once(seed: int) -> Sequence[Array]:
        return run([array.copy() for array in chosen.drawn.arrays], seed=seed)

    several = [once(seed) for seed in range(3)]
    varies = [len({array.tobytes() for array in arrays}) > 1 for arrays in zip(*several, strict=True)]
    return replace(recording, random={"case": chosen.name, "varies": varies, "moments": moments(once)})


def state_specs(state: Mapping[str, Array]) -> tuple[OutputSpec, ...]:
    """What is recorded of states, in the order of their keys."""
    return tuple(OutputSpec(f"state {key}", state[key].dtype.name) for key in sorted(state))


# The content of the states in the model's precision and in float64.
StatePair = tuple[Mapping[str, Array], Mapping[str, Array]]


def _pair(state: Mapping[str, Array]) -> StatePair | None:
    return (state, state) if state else None


class _Run:
    """Both of PyTorch's runs of one call; remembers the state that it leaves."""

    def __init__(
        self, specs: Sequence[OutputSpec], eager: Eager, reference: Reference, lower: Lower | None = None
    ) -> None:
        self.specs, self.eager, self.reference, self.lower = specs, eager, reference, lower
        self.after: StatePair | None = None

    def __call__(
        self, inputs: Sequence[Array], weights: Mapping[str, Array] | None, state: StatePair | None
    ) -> tuple[Expected, ...]:
        single, double = state or (None, None)
        torch = self.eager([array.copy() for array in inputs], weights=weights, state=single)
        if self.lower is not None:
            torch = self._rounded(self.lower.run, inputs, weights, single)
        copies = [array.copy() for array in inputs]
        exact, _ = self.reference(copies, double=True, capture_values=(), weights=weights, state=double)
        if single is not None:
            keys = sorted(single)
            at = len(self.specs) - len(keys)
            self.after = (
                dict(zip(keys, torch[at:], strict=True)), dict(zip(keys, exact[at:], strict=True)),
            )  # fmt: skip
        precision = self.lower.precision if self.lower is not None else ""
        if self.lower is not None and self.lower.shaken is not None:
            for seed in range(1, SHAKES + 1):
                other = self._rounded(self.lower.shaken(seed), inputs, weights, single)
                torch = [_undecided(*item, precision) for item in zip(self.specs, torch, exact, other, strict=True)]
        return tuple(_expect_output(*item, precision) for item in zip(self.specs, torch, exact, strict=True))

    @staticmethod
    def _rounded(
        run: Rounded,
        inputs: Sequence[Array],
        weights: Mapping[str, Array] | None,
        state: Mapping[str, Array] | None,
    ) -> Sequence[Array]:
        outputs, _ = run([array.copy() for array in inputs], capture_values=(), weights=weights, state=state)
        return outputs


def _undecided(spec: OutputSpec, torch: Array, float64: Array, other: Array, precision: str) -> Array:
    """`torch`, but where `other` roundings give something else, what makes the position one that is not compared."""
    if not is_float(spec.dtype):
        return np.where(other != float64, other, torch)
    with np.errstate(all="ignore"):
        allowed = tolerance_of(torch, float64, spec.dtype, precision)
        far = ~(np.abs(other.astype(np.float64) - float64) <= allowed) & np.isfinite(float64)
    return np.where(far, torch.dtype.type(np.nan), torch)


def record_sequence(
    recordings: Sequence[Recording],
    outputs: Mapping[str, Sequence[OutputSpec]],
    eager: Mapping[str, Eager],
    reference: Mapping[str, Reference],
    state: Mapping[str, Array],
    lower: Mapping[str, Lower | None] | None = None,
) -> tuple[Step, ...]:
    """Calls of all functions one after the other, each from the state that the one before it left.

    Every function is called with its example and two drawn cases, then the first function and the last again. A call
    that PyTorch refuses is left out.
    """
    specs = state_specs(state)
    calls = [(item, case) for item in recordings for case in item.cases[:3]]
    calls += [(item, item.cases[-1 if len(item.cases) < 2 else 1]) for item in (recordings[0], recordings[-1])]
    current = _pair(state)
    steps: list[Step] = []
    for item, case in calls:
        wanted = outputs[item.function]
        name = item.function
        run = _Run((*wanted, *specs), eager[name], reference[name], (lower or {}).get(name))
        try:
            found = run(case.drawn.arrays, None, current)
        except Exception:
            continue
        steps.append(Step(item.function, case.name, found[: len(wanted)], found[len(wanted) :]))
        current = run.after
    return tuple(steps)


def _check_traced(
    drawn: Drawn, sizes: Mapping[str, int], outputs: Sequence[OutputSpec], eager: Eager, reference: Reference
) -> None:
    """Whether the traced graph does at other sizes what the module does: torch.export may have fixed a branch.

    Raises:
        TranspileError: "dynamic-shape".
    """
    where = ", ".join(f"{name} = {value}" for name, value in sizes.items())
    wanted = eager([array.copy() for array in drawn.arrays], weights=None, state=None)
    try:
        copies = [array.copy() for array in drawn.arrays]
        got, _ = reference(copies, double=False, capture_values=(), weights=None, state=None)
        reason = "" if all(map(_alike, wanted, got)) else "its results differ"
        for item, array in zip(outputs, wanted, strict=True):
            shape = array.shape if item.shape is None else tuple(evaluate(dim, sizes) for dim in item.shape)
            if shape != array.shape:
                reason = f"{item.name} is of shape {array.shape}, not {shape}"
    except Exception as error:
        reason = f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
    if reason:
        raise TranspileError(
            "dynamic-shape",
            f"The traced model is not the model at {where}: {reason}",
            notes=["torch.export traced it at the sizes of the example inputs, and fixed what depends on them"],
            hints=["narrow the bounds, as in --dynamic x.0=batch:2..64, or avoid branches on sizes in forward"],
        )


def _alike(wanted: Array, got: Array) -> bool:
    """Equal but for rounding: a wrong branch shows in the first digits."""
    if wanted.shape != got.shape or wanted.dtype != got.dtype:
        return False
    if not is_float(wanted.dtype.name):
        return True  # a tie of an argmax may fall either way
    scale = float(np.max(np.abs(wanted[np.isfinite(wanted)]), initial=0.0))
    return bool(np.allclose(wanted, got, rtol=1e-2, atol=1e-2 * scale, equal_nan=True))


def _reload(
    run: _Run, case: Recorded, state: State, initial: Callable[[Mapping[str, Array]], Mapping[str, Array]]
) -> Reload | None:
    arrays = state.arrays()
    outputs = run(case.drawn.arrays, arrays, _pair(initial(arrays)))[: len(case.outputs)]
    changed = any(
        not np.array_equal(new.torch, old.torch, equal_nan=new.torch.dtype.kind == "f")
        for new, old in zip(outputs, case.outputs, strict=True)
    )
    note = ""
    if not changed:
        note = "the new weights give the same outputs"
    elif not all(np.isfinite(item.torch).all() for item in outputs if is_float(item.dtype)):
        note = "some outputs are not finite with the new weights"
    return Reload(case.name, state, outputs, changed, note)


def _taps(
    drawn: Drawn, reference: Reference, taps: Mapping[str, str], lower: Lower | None, dtypes: Mapping[str, str]
) -> Taps:
    names = sorted(set(taps.values()))
    inputs = [array.copy() for array in drawn.arrays]
    if lower is None:
        _, single = reference(inputs, double=False, capture_values=names, weights=None, state=None)
    else:
        _, single = lower.run(inputs, capture_values=names, weights=None, state=None)
    precision = lower.precision if lower is not None else ""
    copies = [array.copy() for array in drawn.arrays]
    _, double = reference(copies, double=True, capture_values=names, weights=None, state=None)
    values = {
        path: expect(
            path,
            dtypes.get(path, single[fx].dtype.name),
            single[fx],
            double[fx],
            whole=TAP_SAMPLE,
            sample=TAP_SAMPLE,
            parts=1,
            precision=precision,
        )
        for path, fx in sorted(taps.items())
        if fx in single and fx in double
    }
    return Taps(drawn.name, values)
