"""Choosing layouts: blocked channels where convolutions live, packed panels for linear weights.

The pass walks the graph once and keeps, for every value, the forms it exists in: plain, blocked (NCHW16c), or both. A
convolution asks for a blocked input and gives a blocked output; element-wise ops and pools follow their inputs; any
other op asks for plain. A missing form is made where it is first asked for, so between neighbouring convolutions
nothing is repacked.
"""

from __future__ import annotations

from dataclasses import replace

from transpiler.ir import Graph, Layout, Node, TensorType, Value, fixed_size
from transpiler.ops.adaptive_pool import AdaptiveAvgPool
from transpiler.ops.base import Elementwise
from transpiler.ops.blocked_conv import ConvBlocked, ConvDepthwise, ConvStem
from transpiler.ops.conv import Conv, ConvTranspose
from transpiler.ops.index import Take
from transpiler.ops.linalg import Linear
from transpiler.ops.packed import (
    BLOCK,
    LinearPacked,
    PackChannels,
    PackConv,
    PackConvStem,
    PackDepthwise,
    PackMatmul,
    TakePacked,
    UnpackChannels,
    blocks,
)
from transpiler.ops.pool import AvgPool, MaxPool
from transpiler.ops.reduce import ReduceMax, ReduceMean, ReduceSum
from transpiler.ops.rnn import GruScan, LstmScan, RnnScan
from transpiler.ops.shape import Concat, Reshape
from transpiler.ops.shape_edges import Pad
from transpiler.passes.grouped import WITHIN_BLOCK, blocks_of_groups, group_blocks, plain_groups, repeated_channels
from transpiler.passes.rewrite import Rewriter, rewrite
from transpiler.passes.transposed import emit_transposed, phases
from transpiler.passes.weights import weight_values

# Inputs of at most this many channels are read unblocked: blocking would multiply the work by 16 / channels.
STEM_CHANNELS = 8


def blocked_channels(graph: Graph) -> Graph:
    """Give 2-d convolutions blocked maps.

    before: %c = conv(%x, %w); %y = relu(%c)
    after:  %b = pack_channels(%x); %v = pack_conv(%w); %c = conv_blocked(%b, %v); %r = relu(%c);
            %y = unpack_channels(%r)
    """
    return _Layout(graph).run()


class _Layout:
    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self.rewriter = Rewriter(graph)
        self.weights = weight_values(graph)
        self.plain: dict[str, Value] = {item.value.name: item.value for item in graph.inputs}
        self.blocked: dict[str, Value] = {}
        self.channels: dict[str, int] = {}
        # Maps with zeros around them: convolutions read what is inside.
        self.padded = {node.output.name: node for node in graph.nodes if _pads_map(node)}

    def run(self) -> Graph:
        for node in self.graph.nodes:
            if not self._blocked_node(node):
                inputs = tuple(self._plain(value) for value in node.inputs)
                self.rewriter.nodes.append(replace(node, inputs=inputs))
                self.plain.update({value.name: value for value in node.outputs})
        outputs = tuple(replace(item, value=self._plain(item.value)) for item in self.graph.outputs)
        taps = {}
        for path, tap in self.graph.taps.items():
            if tap.value in self.blocked:
                layout = Layout(self.channels[tap.value])
                taps[path] = replace(tap, value=self.blocked[tap.value].name, layout=layout)
            elif tap.value in self.plain:  # else it was dead code
                taps[path] = replace(tap, value=self.plain[tap.value].name)
        return replace(self.graph, nodes=tuple(self.rewriter.nodes), outputs=outputs, taps=taps)

    def _plain(self, value: Value) -> Value:
        if value.name not in self.plain:
            op = UnpackChannels(self.channels[value.name])
            self.plain[value.name] = self.rewriter.emit(op, self.blocked[value.name], like=value)
        return self.plain[value.name]

    def _packed(self, value: Value) -> Value:
        if value.name not in self.blocked:
            self.channels[value.name] = fixed_size(value.shape[1])
            self.blocked[value.name] = self.rewriter.emit(PackChannels(), self.plain[value.name], like=value)
        return self.blocked[value.name]

    def _give(self, old: Value, new: Value, channels: int) -> bool:
        self.blocked[old.name], self.channels[old.name] = new, channels
        return True

    def _blocked_node(self, node: Node) -> bool:
        """Emit the node on blocked maps; False if it stays plain."""
        if len(node.outputs) != 1:
            return False
        output = node.output
        if isinstance(node.op, Conv):
            return self._convolution(node, node.op)
        if isinstance(node.op, ConvTranspose):
            return self._transposed(node, node.op)
        if output.type.rank == 4 and isinstance(node.op, Elementwise):
            return self._elementwise(node)
        if not node.inputs or node.inputs[0].name not in self.blocked:
            return False
        x = node.inputs[0]
        blocked, channels = self.blocked[x.name], self.channels[x.name]
        op: MaxPool | AvgPool | AdaptiveAvgPool | ReduceMean | ReduceSum | ReduceMax
        match node.op:
            case MaxPool() as pool if not pool.ceil_mode:
                op = MaxPool(
                    (*pool.kernel, 1), (*pool.stride, 1), (*pool.padding, 0), (*pool.dilation, 1), pool.ceil_mode
                )
            case AvgPool() as mean if not mean.ceil_mode:
                op = replace(mean, kernel=(*mean.kernel, 1), stride=(*mean.stride, 1), padding=(*mean.padding, 0))
            case AdaptiveAvgPool(size=size):
                op = AdaptiveAvgPool((*size, BLOCK))
            case (ReduceMean() | ReduceSum() | ReduceMax()) as reduce if reduce.axes == (2, 3):
                op = replace(reduce, keepdims=True)
            case Concat(axis=1):
                return self._concat(node)
            case Pad(low=low, high=high, mode="constant") if low[:2] == (0, 0) and high[:2] == (0, 0):
                padded = self.rewriter.emit(replace(node.op, low=(*low, 0), high=(*high, 0)), blocked, like=output)
                return self._give(output, padded, channels)
            case _:
                return False
        result = self.rewriter.emit(op, blocked, like=output)
        if output.type.rank == 4:
            return self._give(output, result, channels)
        # A reduction to [N, C]: the unpacked [N, C, 1, 1] under another shape.
        unpacked = self.rewriter.emit(UnpackChannels(channels), result, like=output)
        self.rewriter.release(node)
        self.plain[output.name] = self.rewriter.emit(Reshape(output.shape), unpacked, like=output)
        return True

    def _transposed(self, node: Node, op: ConvTranspose) -> bool:
        x, weight, *bias = node.inputs
        how = phases(op, x, weight, node.output) if self._takes(node) else None
        if how is None:
            return False
        channels = fixed_size(node.output.shape[1])
        padded = self._padded_bias(self._plain(bias[0]), channels) if bias else None
        source, plain = self._packed(x), self._plain(weight)
        result = emit_transposed(self.rewriter, op, how, x, source, plain, padded, node.output)
        return self._give(node.output, result, channels)

    def _takes(self, node: Node) -> bool:
        """Whether a convolution has a fixed map of float32 and constant weights."""
        x, *weights = node.inputs
        if x.type.rank != 4 or x.dtype != "float32" or not _fixed_map(x):
            return False
        return all(value.name in self.weights for value in weights)

    def _convolution(self, node: Node, op: Conv) -> bool:
        x, weight, *bias = node.inputs
        if not self._takes(node):
            return False
        out_channels, group_channels, *kernel = weight.type.static_shape()
        in_channels = fixed_size(x.shape[1])
        square = in_channels == out_channels and group_channels in WITHIN_BLOCK
        depthwise = op.groups > 1 and (square or group_channels == 1)
        if op.groups != 1 and not depthwise:
            return self._grouped(node, op)
        if out_channels > in_channels and group_channels == 1 and depthwise:
            x = repeated_channels(self.rewriter, self._plain(x), out_channels // in_channels)
            self.plain[x.name], in_channels = x, out_channels
        plain_weight = self._plain(weight)
        padding = (*op.padding, *op.padding)
        if x.name in self.padded:
            x, padding = self._unpadded(x, padding)
        attributes = (out_channels, in_channels, tuple(kernel), op.stride, padding, op.dilation)
        form: ConvBlocked | ConvStem | ConvDepthwise
        pack: PackConv | PackConvStem | PackDepthwise
        if depthwise:
            form, pack, source = ConvDepthwise(*attributes, group_channels), PackDepthwise(), self._packed(x)
        elif group_channels <= STEM_CHANNELS:
            form, pack, source = ConvStem(*attributes), PackConvStem(), self._plain(x)
        else:
            form, pack, source = ConvBlocked(*attributes), PackConv(), self._packed(x)
        packed = self.rewriter.emit(pack, plain_weight, like=weight)
        padded = [self._padded_bias(self._plain(value), out_channels) for value in bias]
        result = self.rewriter.emit(form, source, packed, *padded, like=node.output)
        return self._give(node.output, result, out_channels)

    def _grouped(self, node: Node, op: Conv) -> bool:
        """A convolution of groups that do not share blocks: on the map as it is where each group has whole blocks,
        else on one in which each begins a block."""
        x, weight, *bias = node.inputs
        out_channels, group_channels, *kernel = weight.type.static_shape()
        groups = op.groups
        whole = group_channels % BLOCK == 0 and out_channels // groups % BLOCK == 0
        source = self._packed(x) if whole else blocks_of_groups(self.rewriter, self._plain(x), groups)
        filters, *biases = (group_blocks(self.rewriter, self._plain(value), groups) for value in (weight, *bias))
        padding = (*op.padding, *op.padding)
        form = ConvBlocked(out_channels, fixed_size(x.shape[1]), tuple(kernel), op.stride, padding, op.dilation, groups)
        packed = self.rewriter.emit(PackConv(), filters, like=weight)
        result = self.rewriter.emit(form, source, packed, *biases, like=node.output)
        if whole:
            return self._give(node.output, result, out_channels)
        self.rewriter.release(node)
        self.plain[node.output.name] = plain_groups(self.rewriter, result, groups, node.output)
        return True

    def _unpadded(self, x: Value, padding: tuple[int, ...]) -> tuple[Value, tuple[int, ...]]:
        """What lies inside of the padded map `x`, and the padding with that of `x` added."""
        node = self.padded[x.name]
        assert isinstance(node.op, Pad)
        around = (*node.op.low[2:], *node.op.high[2:])
        inner = node.inputs[0]
        sides = [own + more for own, more in zip(padding, around, strict=True) if isinstance(more, int)]
        return inner, tuple(sides)

    def _padded_bias(self, bias: Value, channels: int) -> Value:
        extra = blocks(channels) * BLOCK - channels
        return self.rewriter.emit(Pad((0,), (extra,)), bias, like=bias) if extra else bias

    def _elementwise(self, node: Node) -> bool:
        output = node.output
        if not _fixed_map(output) or not any(value.name in self.blocked for value in node.inputs):
            return False
        channels = fixed_size(output.shape[1])
        forms = [self._broadcast_form(value, output.type) for value in node.inputs]
        if any(form is None for form in forms):
            return False
        inputs: list[Value] = []
        for value, form in zip(node.inputs, forms, strict=True):
            if form == "scalar":
                inputs.append(self._plain(value))
            elif form == "packed":
                inputs.append(self._packed(value))
            else:
                plain = self._plain(value)
                shape = (*(1,) * (4 - plain.type.rank), *plain.shape)
                widened = plain if plain.type.rank == 4 else self.rewriter.emit(Reshape(shape), plain, like=value)
                inputs.append(self.rewriter.emit(PackChannels(), widened, like=value))
        result = self.rewriter.emit(node.op, *inputs, like=output)
        return self._give(output, result, channels)

    def _broadcast_form(self, value: Value, output: TensorType) -> str | None:
        """How an operand joins a blocked op: "packed" (a map), "scalar", "widen" (a channel vector), None: not."""
        if value.type.rank == 4 and value.shape[1] == output.shape[1]:
            return "packed"
        if all(dim == 1 for dim in value.shape):
            return "scalar" if value.type.rank == 0 else None
        if value.type.rank == 3 and value.shape[0] == output.shape[1]:
            return "widen"
        return None

    def _concat(self, node: Node) -> bool:
        if not all(value.name in self.blocked for value in node.inputs):
            return False
        if any(self.channels[value.name] % BLOCK for value in node.inputs[:-1]):
            return False
        parts = [self.blocked[value.name] for value in node.inputs]
        channels = sum(self.channels[value.name] for value in node.inputs)
        return self._give(node.output, self.rewriter.emit(Concat(1), *parts, like=node.output), channels)


def _pads_map(node: Node) -> bool:
    """Whether a node puts zeros around a map."""
    match node.op:
        case Pad(low=(0, 0, *low), high=(0, 0, *high), mode="constant", value=value) if value == 0:
            return len(low) == 2 and all(isinstance(size, int) for size in (*low, *high))
    return False


def _fixed_map(value: Value) -> bool:
    """Whether the channels and the extent of a map are fixed; the number of images may vary."""
    return all(isinstance(dim, int) for dim in value.shape[1:])


def linear_views(graph: Graph) -> Graph:
    """Linear layers on the shape that the model has around them, so that what follows can join their kernel.

    before: %m = reshape(%x) {shape = (64, 768)}; %l = linear(%m, %w); %y = reshape(%l) {shape = (1, 64, 768)}
    after:  %l = linear(%x, %w); %m = reshape(%l) {shape = (64, 768)}; %y = reshape(%m) {shape = (1, 64, 768)}

    Only where every reader of the result wants that shape; the two views that remain cancel.
    """
    producers, consumers, kept = graph.producers(), graph.consumers(), graph.kept_names()

    def visit(rewriter: Rewriter, node: Node) -> list[Value] | None:
        view = producers.get(node.inputs[0].name) if node.inputs else None
        if not isinstance(node.op, Linear) or view is None or not isinstance(view.op, Reshape):
            return None
        source, output = view.inputs[0], node.output
        if source.type.rank < 2 or source.shape[-1] != node.inputs[0].shape[-1] or output.name in kept:
            return None
        wanted = (*source.shape[:-1], output.shape[-1])
        readers = consumers[output.name]
        if not readers or any(
            not isinstance(reader.op, Reshape) or reader.output.shape != wanted for reader in readers
        ):
            return None
        unnamed = replace(output, name=source.name)  # the view has the name
        whole = rewriter.emit(node.op, source, *node.inputs[1:], like=unnamed)
        return [rewriter.emit(Reshape(output.shape), whole, like=output)]

    return rewrite(graph, visit)


def packed_linear(graph: Graph) -> Graph:
    """Pack the weights of linear layers; an embedding that shares one reads the packed form.

    before: %e = take(%w, %ids) {axis = 0}; %y = linear(%x, %w, %b)
    after:  %p = pack_matmul(%w); %e = take_packed(%p, %ids); %y = linear_packed(%x, %p, %b)
    """
    weights = weight_values(graph)
    shared = {node.inputs[1].name for node in graph.nodes if _packs(node, weights)} - _read_elsewhere(graph, weights)

    def visit(rewriter: Rewriter, node: Node) -> list[Value] | None:
        if isinstance(node.op, Take) and node.op.axis == 0 and node.inputs[0].name in shared:
            weight, indices = node.inputs
            packed = rewriter.emit(PackMatmul(), weight, like=weight)
            take = TakePacked(fixed_size(weight.shape[0]), node.op.wraps)
            return [rewriter.emit(take, packed, indices, like=node.output)]
        if not _packs(node, weights):
            return None
        x, weight, *bias = node.inputs
        packed = rewriter.emit(PackMatmul(), weight, like=weight)
        op = LinearPacked(fixed_size(weight.shape[0]))
        return [rewriter.emit(op, x, packed, *bias, like=node.output)]

    return rewrite(graph, visit)


def _packs(node: Node, weights: frozenset[str]) -> bool:
    """Whether a node is a linear layer whose weight can be packed."""
    return isinstance(node.op, Linear) and node.output.dtype == "float32" and node.inputs[1].name in weights


def _read_elsewhere(graph: Graph, weights: frozenset[str]) -> set[str]:
    """Values that something else than the layers and embeddings of `packed_linear` reads: both forms are needed."""
    read = {item.value.name for item in graph.outputs} | graph.kept_names()
    for node in graph.nodes:
        for position, value in enumerate(node.inputs):
            embeds = isinstance(node.op, Take) and node.op.axis == 0 and position == 0
            if not embeds and not (_packs(node, weights) and position == 1):
                read.add(value.name)
    return read


def packed_recurrent(graph: Graph) -> Graph:
    """Pack the recurrent weights of LSTM, GRU and plain RNN layers; every gate is padded to whole panels.

    before: %y, %h = gru_scan(%gates, %h0, %w, %b)
    after:  %p = pack_matmul(%w); %y, %h = gru_scan(%gates, %h0, %p, %b) {packed = True}
    """
    weights = weight_values(graph)

    def visit(rewriter: Rewriter, node: Node) -> list[Value] | None:
        op = node.op
        if not isinstance(op, LstmScan | GruScan | RnnScan) or op.packed:
            return None
        position = 3 if isinstance(op, LstmScan) else 2
        weight = node.inputs[position]
        if weight.dtype != "float32" or weight.name not in weights or not weight.type.is_static:
            return None
        rows, units = weight.type.static_shape()
        extra = -units % BLOCK
        padded = weight
        if extra:
            gates = rows // units
            split = rewriter.emit(Reshape((gates, units, units)), weight, like=weight)
            wide = rewriter.emit(Pad((0, 0, 0), (0, extra, 0)), split, like=weight)
            padded = rewriter.emit(Reshape((gates * (units + extra), units)), wide, like=weight)
        packed = rewriter.emit(PackMatmul(), padded, like=weight)
        inputs = [*node.inputs[:position], packed, *node.inputs[position + 1 :]]
        return list(rewriter.emit_all(replace(op, packed=True), *inputs, like=node.outputs))

    return rewrite(graph, visit)
