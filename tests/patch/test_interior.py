"""Models in NCHW memory: between blocks activations lie as kernels want them, outside everything is as torch has it."""

import copy
import re

import pytest
import torch
import torch.nn.functional as F
from replays import CALLS, programs
from torch import nn

import tritonconv
from tritonconv.launch.common import is_channels_last
from tritonconv.ops import conv as ops
from tritonconv.patching.swap import plan_of

CHANNELS_LAST = torch.channels_last
X = (2, 4, 6, 5)


class Model(nn.Module):
    """Two convolutions, and between or after them what a test wants."""

    def __init__(self, between=lambda self, y: y, after=lambda self, y: y, extra: nn.Module | None = None):
        super().__init__()
        self.first = nn.Sequential(nn.Conv2d(4, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU())
        self.last = nn.Conv2d(8, 8, 3, padding=1)
        self.extra = extra or nn.Identity()
        self.between, self.after = between, after

    def forward(self, x):
        return self.after(self, self.last(self.between(self, self.first(x))))


class Untraceable(nn.Module):
    def forward(self, x):
        return x.view(-1).view_as(x) if x.sum() > 0 else x


def in_place(self, y):
    y = y * 2
    flat = y.view(y.size(0), -1)
    y += 1
    return y + flat.sum(1).view(-1, 1, 1, 1)


def shuffled(self, y):
    n, c, h, w = y.shape
    return y.view(n, 2, c // 2, h, w).transpose(1, 2).contiguous().view(n, c, h, w)


# What is between or after the convolutions, whether the model has an interior.
MODELS = {
    "nothing": (lambda: Model(), True),
    "arithmetic": (lambda: Model(lambda self, y: torch.cat((F.relu(y), y * y.sigmoid()), 1)[:, 4:12] + y), True),
    "a view of the result": (lambda: Model(after=lambda self, y: y.view(y.size(0), -1)), True),
    "a shuffle": (lambda: Model(shuffled), True),
    "parts": (lambda: Model(lambda self, y: torch.cat(y.chunk(2, 1)[::-1], 1)), True),
    "interpolation": (lambda: Model(lambda self, y: F.interpolate(y, scale_factor=2.0, mode="bilinear")), True),
    "several results": (lambda: Model(after=lambda self, y: {"y": y, "more": (y, y.mean((2, 3)))}), True),
    "a module": (lambda: Model(lambda self, y: self.extra(y), extra=nn.GroupNorm(2, 8)), True),
    "a part of the result": (lambda: Model(after=lambda self, y: y[:, 1:]), False),
    "a turned result": (lambda: Model(after=lambda self, y: y.permute(0, 2, 3, 1)), False),
    "a change behind a view": (lambda: Model(in_place), False),
    "strides": (lambda: Model(lambda self, y: y.as_strided(y.shape, y.stride())), False),
    "dropout": (lambda: Model(lambda self, y: self.extra(y), extra=nn.Dropout(0.4)), False),
    "dropout of vectors": (lambda: Model(after=lambda self, y: self.extra(y.flatten(1)), extra=nn.Dropout(0.4)), True),
    "what cannot be traced": (lambda: Model(lambda self, y: self.extra(y), extra=Untraceable()), False),
    "a format asked for": (lambda: Model(after=lambda self, y: y.contiguous(memory_format=CHANNELS_LAST)), False),
}


def pair(make) -> tuple[nn.Module, nn.Module]:
    torch.manual_seed(0)
    plain = make().double()
    return tritonconv.patch(copy.deepcopy(plain)), plain


def trained(model: nn.Module, x: torch.Tensor) -> tuple[object, list[torch.Tensor]]:
    """The outputs, and the gradients of the input and the parameters."""
    torch.manual_seed(1)
    x = x.clone().requires_grad_()
    y = model(x)
    leaves = torch.utils._pytree.tree_leaves(y)
    return y, list(torch.autograd.grad(sum(leaf.square().sum() for leaf in leaves), [x, *model.parameters()]))


def assert_alike(got, want) -> None:
    torch.testing.assert_close(got, want, check_stride=True)


def assert_alike_or_raise(patched: nn.Module, plain: nn.Module, x: torch.Tensor) -> None:
    """Where torch raises, of a view that cannot be in channels_last memory, ours raises the same."""
    try:
        want = plain(x)
    except RuntimeError as error:
        with pytest.raises(RuntimeError, match=re.escape(str(error))):
            patched(x)
    else:
        assert_alike(patched(x), want)


@pytest.mark.parametrize("case", MODELS)
def test_results_and_gradients_are_such_as_torch_gives(case):
    make, known = MODELS[case]
    patched, plain = pair(make)
    assert plan_of(patched).interior == known
    x = torch.randn(X, dtype=torch.float64)
    for _ in range(4):
        assert_alike(trained(patched, x), trained(plain, x))
    patched.eval(), plain.eval()
    with torch.no_grad():
        for _ in range(4):
            assert_alike(patched(x), plain(x))
        assert_alike_or_raise(patched, plain, x.contiguous(memory_format=CHANNELS_LAST))


@pytest.fixture
def converted(monkeypatch) -> list:
    """The shapes that blocks turn into NCHW memory."""
    shapes, nchw = [], ops.nchw
    monkeypatch.setattr(ops, "nchw", lambda y: shapes.append(tuple(y.shape)) or nchw(y))
    return shapes


def saved(model: nn.Module, x: torch.Tensor) -> list[bool]:
    """Of the images that a forward keeps for backward, whether they are in channels_last memory."""
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        model(x)
    return [is_channels_last(t) for t in kept if t.dim() == 4 and t.shape[2:] == x.shape[2:] and t is not x]


def test_nothing_is_converted_between_blocks(converted):
    patched, _ = pair(Model)
    x = torch.randn(X, dtype=torch.float64)
    assert all(saved(patched, x)) and not converted
    assert patched(x).is_contiguous()


@pytest.mark.parametrize("mode", (torch.no_grad, torch.inference_mode))
def test_a_repeated_call_has_as_few_pieces_in_either_format(mode):
    patched, plain = pair(Model)
    patched.eval(), plain.eval()
    with mode():
        for memory_format in (torch.contiguous_format, CHANNELS_LAST):
            x = torch.randn(X, dtype=torch.float64).contiguous(memory_format=memory_format)
            for _ in range(CALLS):
                assert_alike(patched(x), plain(x))
    ours, theirs = (len(program.segments) for program in programs(patched))
    assert ours == theirs


def test_a_hook_sees_what_torch_would_show_it(converted):
    patched, plain = pair(Model)
    x, seen = torch.randn(X, dtype=torch.float64), []
    for model in (patched, plain):
        model.last.register_forward_hook(lambda module, args, y: seen.append((*args, y)))
        model(x)
    assert converted
    assert_alike(*seen)


@pytest.mark.parametrize("change", (
    lambda m: m.to(memory_format=CHANNELS_LAST),
    lambda m: m.last.register_parameter("bias", None),
    lambda m: setattr(m, "last", nn.Conv2d(8, 8, 1).double()),
    lambda m: setattr(m, "extra", Untraceable()),
    lambda m: setattr(m, "between", shuffled),
    lambda m: setattr(m.first, "forward", lambda x: x.repeat(1, 2, 1, 1)),
))  # fmt: skip
def test_changes_after_patching(change):
    patched, plain = pair(MODELS["a view of the result"][0])
    x = torch.randn(X, dtype=torch.float64)
    for model in (patched, plain):
        torch.manual_seed(2)
        change(model)
    assert_alike_or_raise(patched, plain, x)


def test_a_forward_of_which_nothing_is_known_is_given_nchw_memory():
    class Branching(nn.Module):
        """Traced for `self.flag`, without which it does what no trace has seen."""

        def __init__(self):
            super().__init__()
            self.flag, self.conv = True, nn.Conv2d(8, 8, 1)

        def forward(self, x):
            return self.conv(x) if self.flag else self.conv(x.view(x.shape)).view(-1).view(x.shape)

    patched, plain = pair(lambda: Model(lambda self, y: self.extra(y), extra=Branching()))
    x = torch.randn(X, dtype=torch.float64)
    assert plan_of(patched).interior
    for flag in (True, False):
        patched.extra.flag = plain.extra.flag = flag
        assert_alike(trained(patched, x), trained(plain, x))


def test_what_is_given_stays_what_it_is():
    class Adds(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(4, 4, 1)

        def forward(self, x):
            x += 1
            return x, self.conv(x)

    patched, plain = pair(Adds)
    given = [torch.randn(X, dtype=torch.float64, generator=torch.Generator().manual_seed(3)) for _ in range(2)]
    with torch.no_grad():
        results = [model(x) for model, x in zip((patched, plain), given, strict=True)]
    assert_alike(*results)
    assert_alike(*given)
    assert results[0][0] is given[0]
