"""Inputs computed again in backward: what is kept, the gradients of it, and when it must not be done."""

import copy

import pytest
import torch
import torch.nn.functional as F
from cases import normal
from torch import nn
from torch.utils.checkpoint import checkpoint

from tritonconv import patch
from tritonconv.functional import batch_norm, conv2d, conv_transpose2d
from tritonconv.ops.again import LONGEST

CONVOLUTIONS = {"conv2d": conv2d, "conv_transpose2d": conv_transpose2d}


def operands(dtype=torch.float64):
    """x, weight [6, 6, 3, 3], gamma and beta [6]."""
    shapes = (2, 6, 5, 4), (6, 6, 3, 3), (6,), (6,)
    return [normal(shape, dtype, seed=i).requires_grad_() for i, shape in enumerate(shapes)]


def ours(x, weight, gamma, beta, convolve=conv2d, training=True, act="silu", between=lambda z: None):
    """A convolution behind a norm of what is no leaf, all in channels_last memory."""
    x = (x * 1).contiguous(memory_format=torch.channels_last)
    statistics = (None, None) if training else (x.new_zeros(6), x.new_ones(6))
    z = batch_norm(x, *statistics, gamma, beta, training, activation=act)
    between(z)
    return convolve(z, weight)


def kept(function) -> list[tuple[int, ...]]:
    """Shapes of the images that a function saves for backward, one for each piece of memory."""
    images = {}

    def pack(tensor):
        if tensor.dim() == 4:
            images[tensor.untyped_storage().data_ptr()] = tuple(tensor.shape)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        result = function()
    del result
    return list(images.values())


@pytest.mark.parametrize("convolve", CONVOLUTIONS.values(), ids=CONVOLUTIONS)
def test_a_normalized_input_is_not_kept(convolve):
    x, weight, gamma, beta = operands()
    assert sorted(kept(lambda: ours(x, weight, gamma, beta, convolve))) == sorted([x.shape, weight.shape])


@pytest.mark.parametrize("training", (True, False))
@pytest.mark.parametrize("convolve", CONVOLUTIONS.values(), ids=CONVOLUTIONS)
def test_gradients_to_the_second_order(convolve, training):
    def function(*tensors):
        return ours(*tensors, convolve, training)

    assert torch.autograd.gradcheck(function, operands(), fast_mode=True)
    assert torch.autograd.gradgradcheck(function, operands(), fast_mode=True)


def test_what_is_computed_again_has_the_same_bits():
    tensors = operands(torch.float32)
    alive = []
    for between in (alive.append, lambda z: z.detach().mul_(1)):  # the second spoils the recipe: then z itself is kept
        alive.append(torch.autograd.grad(ours(*tensors, between=between).sum(), tensors))
    assert all(map(torch.equal, alive[-1], alive[-2]))


def test_an_input_changed_since_it_was_made_is_kept():
    x, weight, gamma, beta = operands()

    def double(z):
        with torch.no_grad():
            z.mul_(2)

    assert len(kept(lambda: ours(x, weight, gamma, beta, between=double))) == 3
    (doubled,) = torch.autograd.grad(ours(x, weight, gamma, beta, between=double).sum(), weight)
    (plain,) = torch.autograd.grad(ours(x, weight, gamma, beta).sum(), weight)
    torch.testing.assert_close(doubled, 2 * plain)


def test_parameters_changed_before_backward_raise_as_in_torch():
    x, weight, gamma, beta = operands()
    y = ours(x, weight, gamma, beta)
    with torch.no_grad():
        gamma.mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()


@pytest.mark.parametrize("use_reentrant", (False, True))
def test_within_a_checkpoint(use_reentrant):
    tensors = operands()
    plain = torch.autograd.grad(ours(*tensors).sum(), tensors)
    checkpoint(ours, *tensors, use_reentrant=use_reentrant).sum().backward()
    torch.testing.assert_close([tensor.grad for tensor in tensors], list(plain))


def test_tensors_saved_elsewhere():
    """Hooks that keep copies let go of what the recipe starts from: then the input itself is kept."""
    tensors = operands()
    plain = torch.autograd.grad(ours(*tensors).sum(), tensors)
    with torch.autograd.graph.saved_tensors_hooks(lambda t: t.detach().clone(), lambda t: t):
        y = ours(*tensors)
    torch.testing.assert_close(torch.autograd.grad(y.sum(), tensors), plain)


def test_a_backward_that_is_run_twice():
    tensors = operands()
    y = ours(*tensors).sum()
    first, second = (torch.autograd.grad(y, tensors, retain_graph=again) for again in (True, False))
    assert all(map(torch.equal, first, second))


class Residual(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv1, self.conv2 = (nn.Conv2d(8, 8, 3, padding=1, bias=False) for _ in range(2))
        self.norm1, self.norm2 = nn.BatchNorm2d(8), nn.BatchNorm2d(8)

    def forward(self, x):
        y = F.relu(self.norm1(self.conv1(x)))
        return F.relu(self.norm2(self.conv2(y)) + x)


def residual_networks(blocks: int) -> tuple[nn.Module, nn.Module, torch.Tensor]:
    """Torch's, the same patched, and what they read."""
    torch.manual_seed(0)
    model = nn.Sequential(*(Residual() for _ in range(blocks))).double()
    x = normal((2, 8, 6, 6), torch.float64).contiguous(memory_format=torch.channels_last)
    return copy.deepcopy(model), patch(model, memory_format=torch.channels_last), x


@pytest.mark.parametrize("blocks, sums", ((4, 0), (LONGEST, 0), (LONGEST + 3, 1)))
def test_sums_are_computed_again_of_one_before(blocks, sums):
    """Of a block both norms' inputs are kept, and of some blocks one sum."""
    torchs, ours, x = residual_networks(blocks)
    assert len([shape for shape in kept(lambda: ours(x)) if shape == x.shape]) == 1 + 2 * blocks + sums
    wanted, got = (torch.autograd.grad(m(x).square().sum(), [*m.parameters()]) for m in (torchs, ours))
    torch.testing.assert_close(got, wanted)


def test_a_sum_that_was_computed_again_goes_when_its_derivative_has_read_it():
    _, ours, x = residual_networks(4)
    loss = ours(x).square().sum()
    first = torch.autograd.grad(loss, [*ours.parameters()], retain_graph=True)
    nodes, results = [loss.grad_fn], []
    while nodes:
        node = nodes.pop()
        results += [recipe.result for recipe in [getattr(node, "recipe", None)] if recipe]
        nodes += [after for after, _ in node.next_functions if after]
    assert results
    assert all(result is None for result in results)
    assert all(map(torch.equal, first, torch.autograd.grad(loss, [*ours.parameters()])))


def test_second_derivatives_through_sums_that_are_computed_again():
    def penalty(model, x):
        x = x.clone().requires_grad_()
        weights = [*model.parameters()]
        gradients = torch.autograd.grad(model(x).square().sum(), [x, *weights], create_graph=True)
        return torch.autograd.grad(sum(g.square().sum() for g in gradients), weights)

    torchs, ours, x = residual_networks(3)
    torch.testing.assert_close(penalty(ours, x), penalty(torchs, x))


def test_a_network_keeps_one_image_per_layer():
    layers = (nn.Conv2d(8, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU())
    model = nn.Sequential(*(layer for _ in range(4) for layer in layers)).double()
    x = normal((2, 8, 6, 6), torch.float64)
    patch(model, memory_format=torch.channels_last)
    assert len([shape for shape in kept(lambda: model(x)) if shape == x.shape]) == 1 + 4
