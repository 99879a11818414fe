"""Channels last where convolutions live, for targets whose products want what they sum over side by side.

The pass walks the graph once and keeps, for every value, the forms it exists in: as PyTorch has it, channels last, or
both. A convolution asks for its map with channels last and gives such a one; element-wise ops, pools, reductions and
concatenations follow their inputs; any other op asks for PyTorch's form. A missing form is made where it is first asked
for, so that between neighbouring convolutions nothing is moved. Filters are turned in `prepare`.
"""

from __future__ import annotations

from dataclasses import replace

from transpiler.ir import Graph, Layout, Node, TensorType, Value, fixed_size
from transpiler.ops.adaptive_pool import AdaptiveAvgPool
from transpiler.ops.base import Elementwise
from transpiler.ops.channels_last import ConvLast, first_axes, last_axes
from transpiler.ops.compare import Cast
from transpiler.ops.conv import Conv
from transpiler.ops.dtypes import HALF
from transpiler.ops.pool import AvgPool, MaxPool
from transpiler.ops.reduce import AxisReduce
from transpiler.ops.resize import Resize
from transpiler.ops.shape import Concat, Reshape, Transpose
from transpiler.ops.shape_edges import Pad
from transpiler.passes.rewrite import Rewriter
from transpiler.passes.weights import weight_values

# Channels are filled up to multiples of that: 16 bytes of float32.
MULTIPLE = 4


def channels_last(graph: Graph) -> Graph:
    """Give convolutions maps and filters with their channels last.

    before: %c = conv(%x, %w); %y = relu(%c)
    after:  %a = transpose(%x) {perm = (0, 2, 3, 1)}; %v = transpose(%w) {perm = (0, 2, 3, 1)};
            %c = conv_last(%a, %v); %r = relu(%c); %y = transpose(%r) {perm = (0, 3, 1, 2)}
    """
    return _Layout(graph).run()


class _Layout:
    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self.rewriter = Rewriter(graph)
        self.weights = weight_values(graph)
        self.kept = graph.kept_names()
        self.producers = graph.producers()
        self.plain: dict[str, Value] = {item.value.name: item.value for item in graph.inputs}
        self.last: dict[str, Value] = {}

    def run(self) -> Graph:
        for node in self.graph.nodes:
            self.rewriter.release(node)
            if not self._moved(node):
                inputs = tuple(self._plain(value) for value in node.inputs)
                self.rewriter.keep(replace(node, inputs=inputs))
                self.plain.update({value.name: value for value in node.outputs})
        outputs = tuple(replace(item, value=self._plain(item.value)) for item in self.graph.outputs)
        taps = {}
        for path, tap in self.graph.taps.items():
            if tap.value in self.plain:
                taps[path] = replace(tap, value=self.plain[tap.value].name)
            elif tap.value in self.last:  # else it was dead code
                taps[path] = replace(tap, value=self.last[tap.value].name, layout=Layout(channels_last=True))
        return replace(self.graph, nodes=tuple(self.rewriter.nodes), outputs=outputs, taps=taps)

    # --- forms of values
    def _plain(self, value: Value) -> Value:
        if value.name not in self.plain:
            self.plain[value.name] = self._turned(self.last[value.name], first_axes(value.type.rank), value)
        return self.plain[value.name]

    def _channels_last(self, value: Value) -> Value:
        if value.name not in self.last:
            producer = self.producers.get(value.name)
            if producer is not None and value.name not in self.kept and _widens(producer):
                # What multiplies half floats reads them as they are in memory.
                turned = self._channels_last(producer.inputs[0])
                self.last[value.name] = self.rewriter.emit(producer.op, turned, like=value)
            else:
                axes = last_axes(value.type.rank)
                self.last[value.name] = self._turned(self._plain(value), axes, value)
        return self.last[value.name]

    def _turned(self, value: Value, axes: tuple[int, ...], like: Value) -> Value:
        """A transposed value; where nothing moves, another shape."""
        moved = [axis for axis in axes if value.shape[axis] != 1]
        if moved == sorted(moved):
            return self.rewriter.emit(Reshape(tuple(value.shape[axis] for axis in axes)), value, like=like)
        return self.rewriter.emit(Transpose(axes), value, like=like, label="turned")

    def _give(self, old: Value, new: Value) -> bool:
        self.last[old.name] = new
        return True

    # --- nodes
    def _moved(self, node: Node) -> bool:
        """Emit the node with channels last; False if it stays as it is."""
        if len(node.outputs) != 1 or not node.inputs or node.inputs[0].type.rank not in (4, 5):
            return isinstance(node.op, Elementwise) and len(node.outputs) == 1 and self._elementwise(node)
        output, op = node.output, node.op
        if isinstance(op, Conv):
            return self._convolution(node, op)
        if isinstance(op, Elementwise):
            return self._elementwise(node)
        if node.inputs[0].name not in self.last or not _fixed_channels(node.inputs[0]):
            return False
        x = self.last[node.inputs[0].name]
        match op:
            case MaxPool() | AvgPool() if not op.ceil_mode and len(op.kernel) == x.type.rank - 2:
                wider = replace(op, kernel=(*op.kernel, 1), stride=(*op.stride, 1), padding=(*op.padding, 0))
                if isinstance(wider, MaxPool):
                    wider = replace(wider, dilation=(*wider.dilation, 1))
                return self._give(output, self._pooled(wider, x, output))
            case AdaptiveAvgPool(size=size):
                wide = AdaptiveAvgPool((*size, fixed_size(x.shape[-1])))
                return self._give(output, self._pooled(wide, x, output))
            case Resize(size=sizes, scales=scales) if op.mode.startswith("nearest"):
                resized = replace(op, size=(*sizes, x.shape[-1]), scales=(*scales, None))
                return self._give(output, self._pooled(resized, x, output))
            case AxisReduce(axes=axes, keepdims=keepdims) if min(axes, default=0) > 1:
                if not keepdims and len(axes) != x.type.rank - 2:
                    return False
                result = self.rewriter.emit(replace(op, axes=tuple(axis - 1 for axis in axes)), x, like=output)
                if keepdims:
                    return self._give(output, result)
                self.plain[output.name] = result  # [N, C] is that in both forms
                return True
            case Concat(axis=1) if all(value.name in self.last for value in node.inputs):
                parts = [self.last[value.name] for value in node.inputs]
                return self._give(output, self.rewriter.emit(Concat(x.type.rank - 1), *parts, like=output))
            case Pad(low=low, high=high):
                axes = last_axes(x.type.rank)
                turned = replace(op, low=tuple(low[a] for a in axes), high=tuple(high[a] for a in axes))
                return self._give(output, self.rewriter.emit(turned, x, like=output))
        return False

    def _pooled(self, op: MaxPool | AvgPool | AdaptiveAvgPool | Resize, x: Value, output: Value) -> Value:
        """A pool of [1, N, *S, C], whose windows are one channel wide; or such a map in another size."""
        seen = self.rewriter.emit(Reshape((1, *x.shape)), x, like=x)
        result = self.rewriter.emit(op, seen, like=replace(output, name=x.name))
        return self.rewriter.emit(Reshape(result.shape[1:]), result, like=output)

    def _convolution(self, node: Node, op: Conv) -> bool:
        x, weight, *bias = node.inputs
        if node.output.dtype != "float32" or not weight.type.is_static or not _fixed_channels(x):
            return False
        if any(value.name not in self.weights for value in (weight, *bias)) or 0 in weight.type.static_shape():
            return False
        _, channels, *kernel = weight.type.static_shape()
        depthwise = op.groups > 1 and channels == 1
        if op.groups > 1 and channels % MULTIPLE and not depthwise:
            return False
        if x.name not in self.last and self._lies_well(node, op, kernel):
            return False
        source = self._channels_last(x)
        filters = self._channels_last(weight)
        if op.groups == 1:
            source, filters = self._filled(source), self._filled(filters)
        last = ConvLast(op.stride, op.padding, op.dilation, op.groups)
        biases = [self._plain(value) for value in bias]
        return self._give(node.output, self.rewriter.emit(last, source, filters, *biases, like=node.output))

    def _lies_well(self, node: Node, op: Conv, kernel: list[int]) -> bool:
        """Whether a product reads the map as it is: one pixel of a window, all pixels in order."""
        return {*kernel, *op.stride} == {1} and not any(op.padding) and op.groups == 1

    def _filled(self, value: Value) -> Value:
        extra = -fixed_size(value.shape[-1]) % MULTIPLE
        rank = value.type.rank
        return self.rewriter.emit(Pad((0,) * rank, (*(0,) * (rank - 1), extra)), value, like=value) if extra else value

    def _elementwise(self, node: Node) -> bool:
        output = node.output
        if output.type.rank not in (4, 5) or not any(value.name in self.last for value in node.inputs):
            return False
        inputs = [self._operand(value, output.type) for value in node.inputs]
        return self._give(output, self.rewriter.emit(node.op, *inputs, like=output))

    def _operand(self, value: Value, output: TensorType) -> Value:
        """An operand of a node with channels last; dims that are missing are 1."""
        rank = value.type.rank
        if rank == 0:
            return self._plain(value)
        if rank == output.rank:
            return self._channels_last(value)
        shape = (*(1,) * (output.rank - rank), *value.shape)
        widened = self.rewriter.emit(Reshape(shape), self._plain(value), like=value)
        return self._turned(widened, last_axes(output.rank), value)


def _widens(node: Node) -> bool:
    return isinstance(node.op, Cast) and node.output.dtype == "float32" and node.inputs[0].dtype in HALF


def _fixed_channels(value: Value) -> bool:
    return isinstance(value.shape[1], int)
