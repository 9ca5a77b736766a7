from dataclasses import replace

import pytest
import torch

from benchmarks import operators


@pytest.mark.parametrize("operator", operators.OPERATORS, ids=lambda operator: operator.name)
def test_an_operator_in_every_dtype_and_order_of_derivative(operator):
    for cell in operators.cells():
        if cell.operator is operator:
            operators.run(cell)


def test_a_wrong_result_is_found():
    right = next(cell for cell in operators.cells() if cell.dtype is torch.float32)
    wrong = replace(right.operator, ours=lambda *t: 1.01 * right.operator.ours(*t))
    for order in operators.ORDERS:
        operators.run(replace(right, order=order))
        with pytest.raises(AssertionError):
            operators.run(replace(right, operator=wrong, order=order))
