"""Mixed precision: which values may be rounded to a smaller type, on the neutral graph and for every target alike.

The policy is that of PyTorch's autocast (https://docs.pytorch.org/docs/stable/amp.html, "CUDA Ops that can autocast"),
written for the neutral ops:

* `PRODUCTS` read half floats and sum in float32; their results are low. So are norms and softmax, which compute in
  float32 on what they read.
* The results of `FLOAT32` ops stay float32: exponentials and what may leave the range of float16, sums, cumulative
  sums, losses.
* Everything else follows its operands: low if all that are float32 and no weights are low.

"Low" is what may be rounded where it is stored. What is fused is not stored, thus not rounded. Ints, bools, float64,
and what the user passes and gets are never low.
"""

from __future__ import annotations

from collections.abc import Mapping

from transpiler.ir import Graph, Node, Value
from transpiler.ops.dtypes import HALF
from transpiler.passes.weights import weight_values

# Op -> the operands that it multiplies.
PRODUCTS: Mapping[str, tuple[int, ...]] = {
    **dict.fromkeys(("linear", "linear_packed", "matmul", "grouped_matmul"), (0, 1)),
    **dict.fromkeys(("conv", "conv_transpose", "conv_blocked", "conv_stem", "conv_depthwise", "conv_planes"), (0, 1)),
    "conv_last": (0, 1),
    "attention": (0, 1, 2),
    "lstm_scan": (3,),
    "gru_scan": (2,),
    "rnn_scan": (2,),
}
# Op -> the operand that rows are looked up in.
TABLES: Mapping[str, tuple[int, ...]] = dict.fromkeys(("take", "take_packed", "index"), (0,))
NORMALISING = frozenset({"batch_norm", "layer_norm", "rms_norm", "group_norm", "softmax"})
FLOAT32 = frozenset(
    (
        *("exp", "exp2", "expm1", "log", "log2", "log10", "log1p", "pow", "reciprocal", "rsqrt", "sqrt", "hypot"),
        *("tan", "acos", "asin", "acosh", "atanh", "cosh", "sinh", "softplus", "log_softmax", "log_sigmoid"),
        *("reduce_sum", "reduce_mean", "reduce_prod", "cumsum", "cumprod", "logcumsumexp"),
        *(
            "erfinv",
            "erfc",
            "erfcx",
            "ndtri",
            "log_ndtr",
            "digamma",
            "lgamma",
            "polygamma",
            "zeta",
            "igamma",
            "igammac",
        ),
        *("cholesky", "eigh", "householder_qr", "apply_reflectors", "lu_factor", "triangular_solve", "svd_rows"),
        *("matrix_exp", "lstm_scan", "gru_scan", "rnn_scan", "philox"),
    )
)


def computed_in(precision: str, tf32: bool) -> str:
    """What a target that has (or has not) units for TF32 makes of a precision."""
    return "float32" if precision == "tf32" and not tf32 else precision


# Floats that jump where their operand passes a whole number, or zero.
STEPS = frozenset({"floor", "ceil", "round", "trunc", "sign", "div_round", "fmod", "remainder", "hardshrink"})


def is_half(precision: str) -> bool:
    return precision in HALF


def operands(node: Node) -> list[Value]:
    """What a node multiplies, or looks up rows in: what is worth being half floats in memory."""
    places = {**PRODUCTS, **TABLES}.get(node.op.name, ())
    return [value for place, value in enumerate(node.inputs) if place in places and value.dtype == "float32"]


def low_values(graph: Graph) -> frozenset[str]:
    """The float32 values that an op computes and that may be rounded where they are stored."""
    weights = weight_values(graph)
    low: set[str] = set()
    for node in graph.nodes:
        if node.op.name in FLOAT32 or all(value.name in weights for value in node.outputs):
            continue
        read = [value for value in node.inputs if value.dtype == "float32" and value.name not in weights]
        rounds = node.op.name in PRODUCTS or node.op.name in NORMALISING or node.op.name in TABLES
        if rounds or (read and all(value.name in low for value in read)):
            low.update(value.name for value in node.outputs if value.dtype == "float32")
    return frozenset(low) | _for_products(graph, weights)


def _for_products(graph: Graph, weights: frozenset[str]) -> frozenset[str]:
    """What nothing but products read: they would round it anyway."""
    consumers, kept = graph.consumers(), graph.kept_names()
    found: set[str] = set()
    for node in reversed(graph.nodes):
        for value in node.outputs:
            readers = consumers[value.name]
            if value.dtype != "float32" or value.name in weights or value.name in kept or not readers:
                continue
            if all(_multiplies(reader, value, found) for reader in readers):
                found.add(value.name)
    return frozenset(found)


def _multiplies(reader: Node, value: Value, found: set[str]) -> bool:
    if reader.op.name == "reshape":
        return reader.output.name in found
    return reader.op.name in PRODUCTS and any(item.name == value.name for item in operands(reader))


def decides(graph: Graph) -> bool:
    """Whether the graph makes something discrete of floats that it computes: an index, a bool, a whole number."""
    known = weight_values(graph) | {item.value.name for item in graph.inputs}
    return any(
        (node.op.name in STEPS or any(not value.type.is_float for value in node.outputs))
        and node.op.name not in ("isnan", "isinf", "isfinite")
        and any(value.type.is_float and value.name not in known for value in node.inputs)
        for node in graph.nodes
    )


def rounded_names(graph: Graph) -> frozenset[str]:
    """Every value that a target might round: those that are low, and the operands of products, weights among them."""
    return low_values(graph) | {value.name for node in graph.nodes for value in operands(node)}
