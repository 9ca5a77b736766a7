"""Shape arithmetic against torch and against worked examples."""

import itertools

import pytest
import torch
import torch.nn.functional as F

from tritonconv.geometry import (
    AdaptiveGeometry,
    ConvGeometry,
    PoolGeometry,
    adaptive_geometry,
    input_size,
    output_size,
    same_padding,
)


def test_output_sizes_of_convolution_are_torchs():
    weight = torch.ones(1, 1, 3, 1)
    for size, stride, padding, dilation in itertools.product(range(3, 9), (1, 2, 3), (0, 1, 2), (1, 2)):
        size += 2 * dilation - 2
        y = F.conv2d(torch.ones(1, 1, size, 1), weight, None, (stride, 1), (padding, 0), (dilation, 1))
        assert output_size(size, 3, stride, (padding, padding), dilation) == y.shape[2]


def test_input_sizes_are_the_outputs_of_torchs_transposed_convolution():
    for count, window, stride, padding, dilation in itertools.product((1, 4), (1, 3), (1, 2, 3), (0, 1), (1, 2)):
        for slack in range(stride):
            size = input_size(count, window, stride, padding, dilation, slack)
            if size < 1:
                continue
            x, weight = torch.ones(1, 1, count, 1), torch.ones(1, 1, window, 1)
            pairs = (stride, 1), (padding, 0), (slack, 0)
            assert size == F.conv_transpose2d(x, weight, None, *pairs, dilation=(dilation, 1)).shape[2]
            assert count == output_size(size, window, stride, (padding, padding), dilation)


@pytest.mark.parametrize("ceil_mode", (False, True))
def test_output_sizes_of_pooling_are_torchs(ceil_mode):
    for size, window, stride, dilation in itertools.product(range(4, 10), (1, 2, 3), (1, 2, 3, 5), (1, 2)):
        for padding in range(window // 2 + 1):
            if size + 2 * padding < dilation * (window - 1) + 1:
                continue
            y = F.max_pool2d(torch.ones(1, 1, size, size), window, stride, padding, dilation, ceil_mode)
            pair = (stride,) * 2, (padding,) * 2, (dilation,) * 2
            geometry = PoolGeometry(1, 1, size, size, window, window, *pair, ceil_mode)
            assert y.shape[2:] == (geometry.P, geometry.Q)


def test_adaptive_windows_are_torchs():
    for size, count in itertools.product(range(1, 9), range(1, 12)):
        windows = F.adaptive_avg_pool1d(torch.eye(size)[None], count)[0].T > 0
        geometry = AdaptiveGeometry(1, 1, size, 1, count, 1)
        assert geometry.windows == (windows.sum(1).max(), 1)
        assert geometry.coverings == (windows.sum(0).max(), 1)
        assert isinstance(adaptive_geometry(1, 1, size, 1, count, 1), AdaptiveGeometry) == (size % count > 0)


def test_same_padding_keeps_the_size():
    for window, dilation in itertools.product((1, 2, 3, 4), (1, 2, 3)):
        before, after = same_padding(window, dilation)
        assert output_size(9, window, 1, (before, after), dilation) == 9
        assert 0 <= after - before <= 1


def test_worked_examples():
    assert output_size(7, 3, 2, (0, 0), 1) == 3
    assert output_size(7, 3, 1, (0, 0), 1) == 5
    first = ConvGeometry(1, 3, 32, 32, 32, 5, 5)
    assert (first.P, first.Q) == (28, 28)
    assert first.parameters + first.K == 2432
    pool = PoolGeometry(1, 32, 28, 28, 2, 2, (2, 2))
    second = ConvGeometry(1, 32, pool.P, pool.Q, 64, 5, 5)
    assert (second.P, second.Q) == (10, 10)
    assert second.K * PoolGeometry(1, 64, 10, 10, 2, 2, (2, 2)).P ** 2 == 1600


def test_counts():
    geometry = ConvGeometry(2, 6, 5, 4, 8, 3, 2, padding=((1, 1), (0, 0)), groups=2)
    assert (geometry.P, geometry.Q) == (5, 3)
    assert geometry.parameters == 8 * 3 * 3 * 2
    assert geometry.flops == 2 * (2 * 5 * 3) * 8 * (3 * 3 * 2)
    assert geometry.bytes(4) == 4 * (2 * 6 * 5 * 4 + geometry.parameters + 2 * 8 * 5 * 3)


def test_what_means_divide_by():
    def divisor(count_include_pad, **options):
        return PoolGeometry(1, 1, 7, 7, 3, 3, (2, 2), **options).divisor(count_include_pad)

    assert divisor(True) == divisor(False) == divisor(True, padding=(1, 1)) == 9
    assert divisor(False, padding=(1, 1)) == "inside"
    assert PoolGeometry(1, 1, 8, 8, 3, 3, (2, 2), ceil_mode=True).divisor(True) == "padded"
