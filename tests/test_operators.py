"""The cells of docs/operators.md, and gradients in batches."""

from dataclasses import replace

import pytest
import torch

from benchmarks import operators
from benchmarks.compiled import compiled
from tritonconv import launch
from tritonconv.geometry import ConvGeometry


@pytest.mark.parametrize("operator", operators.OPERATORS, ids=lambda operator: operator.name)
def test_an_operator_in_every_order_of_derivative(operator):
    """In float64, where a slip shows most, and in another dtype, which is the next operator's next one."""
    dtypes = torch.float64, operators.DTYPES[operators.OPERATORS.index(operator) % 3]
    for cell in operators.cells():
        if cell.operator is operator and cell.dtype in dtypes:
            operators.run(cell)


def test_what_an_operator_launches_on_a_gpu_compiles_or_is_found_not_to():
    calls = {order: operators.calls()["conv2d + relu", torch.float16, order] for order in operators.ORDERS}
    x, weight = torch.ones(1, 2, 4, 4), torch.ones(3, 2, 3, 3)
    geometry = ConvGeometry(1, 2, 4, 4, 3, 3, 3)
    calls["no such activation"] = lambda: launch.conv.fprop(x, weight, None, geometry, "swish")
    calls["nothing launched"] = lambda: x + 1
    assert compiled(calls, "gfx942") == {name: name in operators.ORDERS for name in calls}


def test_a_wrong_result_is_found():
    right = next(cell for cell in operators.cells() if cell.dtype is torch.float32)
    wrong = replace(right.operator, ours=lambda *t: 1.01 * right.operator.ours(*t))
    for order in operators.ORDERS:
        operators.run(replace(right, order=order))
        with pytest.raises(AssertionError):
            operators.run(replace(right, operator=wrong, order=order))


def in_a_row(y, tensors, dys):
    every = [torch.autograd.grad(y, tensors, dy, create_graph=True) for dy in dys]
    return [torch.stack(each) for each in zip(*every, strict=True)]


def batched(y, tensors, dys):
    return torch.autograd.grad(y, tensors, dys, create_graph=True, is_grads_batched=True)


def by_vmap(y, tensors, dys):
    return torch.func.vmap(lambda dy: torch.autograd.grad(y, tensors, dy, create_graph=True))(dys)


@pytest.mark.parametrize("operator", operators.OPERATORS, ids=lambda operator: operator.name)
def test_a_batch_of_gradients_gives_what_each_of_them_does(operator):
    torch.manual_seed(0)
    tensors = [torch.randn(shape, dtype=torch.float64).requires_grad_() for shape in operator.shapes]
    y = operator.ours(*tensors)
    dys = torch.randn(3, *y.shape, dtype=y.dtype).requires_grad_()

    def results(way):
        first = way(operator.ours(*tensors), tensors, dys)
        penalty = sum(each.square().sum() for each in first)
        return *first, *torch.autograd.grad(penalty, (*tensors, dys), allow_unused=True)

    want = results(in_a_row)
    for way in (batched, by_vmap):
        torch.testing.assert_close(results(way), want)
