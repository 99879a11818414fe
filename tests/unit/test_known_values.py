"""What a model decides by values that it makes of constants is traced; what depends on anything else is refused."""

from collections.abc import Callable

import pytest
import torch
from torch import nn

from transpiler.capture import capture_functions, capture_module
from transpiler.errors import TranspileErrors

Forward = Callable[[torch.Tensor], torch.Tensor]


class Net(nn.Module):
    def __init__(self, function: Forward) -> None:
        super().__init__()
        self.function = function
        self.register_buffer("ones", torch.ones(3))
        self.register_buffer("two", torch.tensor(2), persistent=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.function(x)


def branch_on_mask(x: torch.Tensor) -> torch.Tensor:
    mask = torch.ones_like(x, dtype=torch.bool)
    return x * 2 if mask.flatten().all() else x


def length_of_written(x: torch.Tensor) -> torch.Tensor:
    marks = torch.zeros(x.shape[0], dtype=torch.int64)
    marks[1:3] = 1
    marks += marks
    return x[: int(marks.sum())] + marks.max().item()


def read_by_mask(x: torch.Tensor) -> torch.Tensor:
    keep = torch.arange(x.shape[0]) % 2 == 1
    return x[keep] + x[keep, 0].sum()


def write_by_mask(x: torch.Tensor) -> torch.Tensor:
    keep = torch.tensor([[True, False, True], [False, False, True]]).repeat(2, 1)
    out = torch.zeros_like(x)
    out[keep] = x[keep] * 3
    return out


def positions(x: torch.Tensor) -> torch.Tensor:
    (rows,) = torch.where(torch.tensor([0, 1, 0, 1]) == 1)
    return x[rows].flatten() + torch.arange(3).repeat_interleave(torch.tensor([1, 2, 3])).nonzero().numel()


def loop_over_sizes(x: torch.Tensor) -> torch.Tensor:
    sizes = torch.full((2,), 2).cumsum(0)
    return torch.cat([x[: int(size)] for size in sizes] + [x[:size] for size in sizes.tolist()])


def sizes(x: torch.Tensor) -> torch.Tensor:
    two = torch.tensor([1, 1]).sum()
    padded = torch.nn.functional.pad(x, (two, 1))
    return padded[:two].reshape(two, -1).repeat(two, 1) + torch.zeros(4, two * 3)


KNOWN = (sizes, branch_on_mask, length_of_written, read_by_mask, write_by_mask, positions, loop_over_sizes)


@pytest.mark.parametrize("function", KNOWN, ids=lambda function: function.__name__)
def test_known(function: Forward) -> None:
    traced = capture_module(Net(function), (torch.randn(4, 3),)).exported_program.module()
    for _ in range(2):
        x = torch.randn(4, 3)
        torch.testing.assert_close(traced(x), function(x), rtol=0, atol=0)


def decide(x: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    return x if value.sum() > 0 else -x


def input_itself(x: torch.Tensor) -> torch.Tensor:
    return decide(x, x)


def written_item(x: torch.Tensor) -> torch.Tensor:
    value = torch.zeros(3)
    value[0] = x[0, 0]
    return decide(x, value)


def written_view(x: torch.Tensor) -> torch.Tensor:
    value = torch.zeros(4, 3)
    value[:2].add_(x[:2])
    return decide(x, value)


def written_base(x: torch.Tensor) -> torch.Tensor:
    value = torch.zeros(4, 3)
    part = value[:2]
    value.copy_(x)
    return decide(x, part)


def written_out(x: torch.Tensor) -> torch.Tensor:
    value = torch.zeros(4, 3)
    torch.add(x, 1, out=value)
    return decide(x, value)


def made_of_value(x: torch.Tensor) -> torch.Tensor:
    return decide(x, torch.full((2,), x[0, 0]))


def drawn(x: torch.Tensor) -> torch.Tensor:
    return decide(x, torch.bernoulli(torch.full((3,), 0.5)))


def uninitialised(x: torch.Tensor) -> torch.Tensor:
    return decide(x, torch.empty_like(torch.zeros(3)))


def drawn_by_generator(x: torch.Tensor) -> torch.Tensor:
    return decide(x, torch.zeros(3).normal_(generator=torch.Generator()))


def filled_with_itself(x: torch.Tensor) -> torch.Tensor:
    value = x[0, 0]
    return decide(x, torch.full_like(value, value))


def copied(x: torch.Tensor) -> torch.Tensor:
    return decide(x, x.new_tensor(x))


def reallocated(x: torch.Tensor) -> torch.Tensor:
    return decide(x, torch.zeros(2).new_empty_strided((2,), (1,)))


def grown(x: torch.Tensor) -> torch.Tensor:
    return decide(x, torch.zeros(2).resize_as_(torch.zeros(400)))


def written_in_a_list(x: torch.Tensor) -> torch.Tensor:
    value = torch.zeros(4, 3)
    torch._foreach_add_([value], [x])
    return decide(x, value)


def written_statistics(x: torch.Tensor) -> torch.Tensor:
    mean, variance = torch.zeros(3), torch.ones(3)
    nn.functional.batch_norm(x, mean, variance, training=True)
    return decide(x, mean)


def replaced_data(x: torch.Tensor) -> torch.Tensor:
    value = torch.zeros(4, 3)
    value.data = x
    return decide(x, value)


UNKNOWN = (
    input_itself, written_item, written_view, written_base, written_out, made_of_value, drawn, uninitialised,
    drawn_by_generator, filled_with_itself, copied, reallocated, grown, written_in_a_list, written_statistics,
    replaced_data,
)  # fmt: skip


@pytest.mark.parametrize("function", UNKNOWN, ids=lambda function: function.__name__)
def test_unknown(function: Forward) -> None:
    with pytest.raises(TranspileErrors, match="depends on the values of a tensor") as error:
        capture_module(Net(function), (torch.randn(4, 3),))
    assert "in decide\n" in str(error.value)


def test_a_buffer_is_not_known() -> None:
    net = Net(lambda x: decide(x, net.ones))
    with pytest.raises(TranspileErrors, match="depends on the values of a tensor"):
        capture_module(net, (torch.randn(4, 3),))


def test_a_buffer_of_no_state_dict_is_known() -> None:
    net = Net(lambda x: x[: int(net.two)] if net.two > 1 else x)
    traced = capture_module(net, (torch.randn(4, 3),)).exported_program.module()
    x = torch.randn(4, 3)
    torch.testing.assert_close(traced(x), x[:2], rtol=0, atol=0)


def test_a_buffer_that_is_written_is_not_known() -> None:
    def function(x: torch.Tensor) -> torch.Tensor:
        y = decide(x, net.two)
        net.two.sub_(3)
        return y

    net = Net(function)
    with pytest.raises(TranspileErrors, match="depends on the values of a tensor"):
        capture_module(net, (torch.randn(4, 3),))


class Counter(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("count", torch.tensor(2), persistent=False)

    def step(self, x: torch.Tensor) -> torch.Tensor:
        self.count.add_(1)
        return x

    def read(self, x: torch.Tensor) -> torch.Tensor:
        return decide(x, self.count)


def test_a_buffer_that_another_function_writes_is_not_known() -> None:
    x = (torch.randn(4, 3),)
    with pytest.raises(TranspileErrors, match="depends on the values of a tensor"):
        capture_functions(Counter(), {"step": (x, {}), "read": (x, {})})


def test_a_size_that_varies_is_not_known() -> None:
    def function(x: torch.Tensor) -> torch.Tensor:
        return decide(x, torch.ones(x.shape[0]) - 3)

    with pytest.raises(TranspileErrors, match="depends on the values of a tensor"):
        capture_module(Net(function), (torch.randn(4, 3),), dynamic_shapes=({0: torch.export.Dim("n", min=2)},))
