"""Convolution, activation and max-pooling in one block: what is found, and that it computes what it did."""

import copy

import pytest
import torch
import torch.nn.functional as F
from networks import SIZE, Calls, assert_as_before, statuses, step
from torch import nn

import tritonconv

FORMS = {
    "conv2d+max_pool2d": lambda m, x: m.pool(m.conv(x)),
    "conv2d+relu+max_pool2d": lambda m, x: m.pool(F.relu(m.conv(x), inplace=True)),
    "conv2d+sigmoid+max_pool2d": lambda m, x: F.max_pool2d(m.conv(x).sigmoid(), (2, 3)),
    "conv2d+leaky_relu+max_pool2d": lambda m, x: torch.max_pool2d(F.leaky_relu(m.conv(x), 0.5), [2], [2, 2], 0, 1),
    "conv2d+max_pool2d+tanh": lambda m, x: F.max_pool2d(input=m.conv(x), kernel_size=2, stride=None).tanh(),
    "conv2d+max_pool2d+relu": lambda m, x: m.act(m.pool(m.conv(x))),
    "conv2d+batch_norm+relu+max_pool2d": lambda m, x: m.pool(m.act(m.norm(m.conv(x)))),
    "conv2d+relu6+max_pool2d": lambda m, x: m.ceil(F.relu6(m.conv(x))),
    "conv2d+hardsigmoid+max_pool2d": lambda m, x: F.max_pool2d(F.hardsigmoid(m.conv(x)), 2, ceil_mode=True),
    "conv2d+max_pool2d+elu": lambda m, x: F.elu(torch.max_pool2d(m.conv(x), 2, 2, 0, 1, True)),
    "conv2d+batch_norm+max_pool2d+sigmoid": lambda m, x: m.ceil(m.norm(m.conv(x))).sigmoid(),
    "conv2d+batch_norm+max_pool2d+relu6": lambda m, x: F.relu6(F.max_pool2d(m.norm(m.conv(x)), 2)),
}


def network(function) -> Calls:
    norm = nn.BatchNorm2d(2)
    with torch.no_grad():
        norm.weight.uniform_(-1, 1)  # the least of a channel may win
    ceil = nn.MaxPool2d(2, ceil_mode=True)
    return Calls(function, pool=nn.MaxPool2d(2), act=nn.ReLU(inplace=True), norm=norm, ceil=ceil)


@pytest.mark.parametrize("training", (True, False))
@pytest.mark.parametrize("pattern", FORMS)
def test_a_block_is_fused_and_computes_what_it_did(pattern, training):
    model = tritonconv.patch(network(FORMS[pattern])).train(training)
    assert statuses(model)["conv"] == f"fused {pattern}"
    assert statuses(model).keys() <= {"conv", "pool", "ceil"}
    assert_as_before(model)
    plain = tritonconv.unpatch(copy.deepcopy(model))
    with torch.no_grad():
        for size in ((2, 2, 7, 6), (2, 2, 6, 6)):
            x = torch.randn(size, dtype=torch.float64)
            for _ in range(2):  # the second time it is a repeated call
                torch.testing.assert_close(model(x), plain(x))


def test_one_kernel_runs(kernel_calls):
    model = tritonconv.patch(network(FORMS["conv2d+relu+max_pool2d"]))
    model(torch.randn(SIZE))
    with torch.no_grad():
        model(torch.randn(SIZE))
    assert kernel_calls == ["conv2d+relu+max_pool2d"] * 2


@pytest.mark.parametrize("pattern", ("conv2d+relu6+max_pool2d", "conv2d+hardsigmoid+max_pool2d"))
def test_a_compiler_takes_ceil_mode(pattern):
    model, x = tritonconv.patch(network(FORMS[pattern])), torch.randn(SIZE)
    torch.testing.assert_close(torch.compile(model, fullgraph=True, backend="eager")(x), model(x))


OTHERS = {
    "windows that overlap": (lambda m, x: F.max_pool2d(m.conv(x), 3, 2), "swapped conv2d"),
    "padding": (lambda m, x: F.max_pool2d(m.conv(x), 2, padding=1), "swapped conv2d"),
    "dilation": (lambda m, x: F.max_pool2d(m.conv(x), 2, dilation=2), "swapped conv2d"),
    "ceil_mode by the input": (lambda m, x: F.max_pool2d(m.conv(x), 2, ceil_mode=x.shape[2] > 1), "swapped conv2d"),
    "indices": (lambda m, x: F.max_pool2d(m.conv(x), 2, return_indices=True), "swapped conv2d"),
    "an activation that falls": (lambda m, x: m.pool(F.silu(m.conv(x))), "fused conv2d+silu"),
    "a falling one behind": (lambda m, x: F.silu(m.pool(m.conv(x))), "fused conv2d+max_pool2d"),
    "a residual": (lambda m, x: m.pool(m.conv(x) + x), "fused conv2d+add"),
    "two readers": (lambda m, x: (y := F.relu(m.conv(x)), m.pool(y)), "fused conv2d+relu"),
    "a window of the caller's": (lambda m, x: F.max_pool2d(m.conv(x), min(2, x.shape[2])), "swapped conv2d"),
}


@pytest.mark.parametrize("what", OTHERS)
def test_other_poolings_run_by_themselves(what):
    function, status = OTHERS[what]
    model = tritonconv.patch(network(function))
    assert statuses(model)["conv"] == status
    assert_as_before(model)


@pytest.mark.parametrize("what", ("pool", "max_pool2d"))
def test_an_excluded_pooling_is_left_alone(what):
    function = FORMS["conv2d+relu+max_pool2d"] if what == "pool" else lambda m, x: F.max_pool2d(F.relu(m.conv(x)), 2)
    model = tritonconv.patch(network(function), exclude=what)
    assert statuses(model)["conv"] == "fused conv2d+relu"
    assert statuses(model)[what] == "left max_pool2d"
    assert_as_before(model)


CHANGES = {
    "window": lambda m: setattr(m.pool, "kernel_size", (1, 2)) or setattr(m.pool, "stride", (1, 2)),
    "overlapping windows": lambda m: setattr(m.pool, "stride", 1),
    "indices wanted": lambda m: setattr(m.pool, "return_indices", True),
    "another pooling": lambda m: setattr(m, "pool", nn.AvgPool2d(2)),
    "a hook": lambda m: m.pool.register_forward_hook(lambda module, args, output: args[0].amin((2, 3), True) + output),
}


@pytest.mark.parametrize("pattern", ("conv2d+relu+max_pool2d", "conv2d+max_pool2d"))
@pytest.mark.parametrize("change", CHANGES)
def test_a_change_after_patching(change, pattern):
    plain = network(FORMS[pattern]).double()
    model = tritonconv.patch(copy.deepcopy(plain))
    x = torch.randn(SIZE, dtype=torch.float64)
    with torch.no_grad():
        model(x)
    for each in (plain, model):
        CHANGES[change](each)
    torch.testing.assert_close(step(model, x), step(plain, x))
    with torch.no_grad():
        torch.testing.assert_close(model(x), plain(x))


def test_a_network_of_such_blocks_trains_as_before():
    """LeNet's kind, with an order of its own in each block."""
    torch.manual_seed(0)
    plain = nn.Sequential(
        *(nn.Conv2d(1, 3, 5), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Conv2d(3, 5, 3), nn.MaxPool2d(2), nn.Tanh()),
        *(nn.Flatten(), nn.Linear(20, 3)),
    ).double()
    model = tritonconv.patch(copy.deepcopy(plain))
    fused = ["fused conv2d+relu+max_pool2d", "fused conv2d+max_pool2d+tanh"]
    assert list(statuses(model).values()) == [*fused, "swapped linear"]
    for each in (plain, model):
        optimizer = torch.optim.SGD(each.parameters(), 0.1, 0.9)
        for seed in range(5):
            x = torch.randn(4, 1, 17, 17, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
            optimizer.zero_grad()
            F.cross_entropy(each(x), torch.arange(4) % 3).backward()
            optimizer.step()
    torch.testing.assert_close(dict(model.state_dict()), dict(plain.state_dict()))


def test_the_plan_moves_the_maxima_alone():
    model = nn.Sequential(nn.Conv2d(1, 6, 5), nn.ReLU(), nn.MaxPool2d(2)).eval()
    (step_,) = tritonconv.plan(model, torch.randn(1, 1, 29, 29))
    assert step_.output == (1, 6, 12, 12)
    assert step_.bytes == 4 * (29 * 29 + 6 * 25 + 6 + 6 * 12 * 12)
