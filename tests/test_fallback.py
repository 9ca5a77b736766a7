"""Calls that the kernels do not take behave as torch's own, down to the text of the error."""

import pytest
import torch
import torch.nn.functional as F
from cases import integers

from tritonconv import functional, launch
from tritonconv.functional import conv2d, max_pool2d


@pytest.fixture(autouse=True)
def no_launch(monkeypatch):
    """A kernel that ran after all would fail the test."""
    monkeypatch.setattr(launch.conv, "fprop", None)
    for kernel in ("max_pool", "avg_pool", "max_unpool"):
        monkeypatch.setattr(launch.pool, kernel, None)


def outcome(function, *args, **kwargs):
    try:
        return function(*args, **kwargs)
    except Exception as error:
        return type(error), str(error)


def assert_alike(got, want):
    assert type(got) is type(want)
    if isinstance(want, tuple):
        assert got == want
    else:
        assert torch.equal(got, want)
        assert got.stride() == want.stride()
        assert got.dtype is want.dtype


X, WEIGHT, BIAS = torch.ones(1, 4, 6, 6), torch.ones(6, 4, 3, 3), torch.ones(6)

WRONG_CONVOLUTIONS = {
    "channels": ((X[:, :3], WEIGHT), {}),
    "group channels": ((X, WEIGHT), {"groups": 2}),
    "indivisible groups": ((X, WEIGHT[:, :1]), {"groups": 4}),
    "too many groups": ((torch.ones(1, 8, 6, 6), WEIGHT[:, :1]), {"groups": 8}),
    "groups 0": ((X, WEIGHT), {"groups": 0}),
    "bias size": ((X, WEIGHT, BIAS[:5]), {}),
    "bias dimensions": ((X, WEIGHT, BIAS[None]), {}),
    "bias dtype": ((X, WEIGHT, BIAS.half()), {}),
    "dtypes": ((X, WEIGHT.double()), {}),
    "half input": ((X.half(), WEIGHT, BIAS), {}),
    "kernel too large": ((X[..., :2], WEIGHT), {}),
    "dilated kernel too large": ((X, WEIGHT), {"dilation": 3}),
    "negative padding": ((X, WEIGHT), {"padding": (0, -1)}),
    "stride 0": ((X, WEIGHT), {"stride": (1, 0)}),
    "dilation 0": ((X, WEIGHT), {"dilation": 0}),
    "three strides": ((X, WEIGHT), {"stride": (1, 1, 1)}),
    "same with stride": ((X, WEIGHT), {"padding": "same", "stride": 2}),
    "unknown padding": ((X, WEIGHT), {"padding": "full"}),
    "input of 2 dimensions": ((X[0, 0], WEIGHT), {}),
    "input of 5 dimensions": ((X[None], WEIGHT), {}),
    "weight of 3 dimensions": ((X, WEIGHT[0]), {}),
    "empty weight": ((X, WEIGHT[:0]), {}),
    "empty image": ((X[:, :, :0], WEIGHT), {}),
}


@pytest.mark.parametrize(("args", "options"), WRONG_CONVOLUTIONS.values(), ids=WRONG_CONVOLUTIONS)
def test_wrong_convolutions_raise_torchs_errors(args, options):
    want = outcome(F.conv2d, *args, **options)
    assert isinstance(want, tuple), "torch accepts this"
    assert_alike(outcome(conv2d, *args, **options), want)


@pytest.mark.parametrize("stride", (2.0, True, "2"))
def test_arguments_of_wrong_types(stride):
    """Here torch's text repeats how the arguments were passed, positionally or by name."""
    for args in ((X, WEIGHT, None, stride), (X, None), ([1.0], WEIGHT)):
        with pytest.raises(TypeError, match=r"^conv2d\(\) received an invalid combination of arguments"):
            conv2d(*args)
    with pytest.raises(TypeError, match=r"^max_pool2d\(\): argument 'stride'"):
        max_pool2d(X, 2, stride)


WRONG_POOLINGS = {
    "padding too large": ((X, 2), {"padding": 2}),
    "window too large": ((X, 7), {}),
    "stride 0": ((X, 2, 0), {}),
    "dilation 0": ((X, 2), {"dilation": 0}),
    "three sizes": ((X, (2, 2, 2)), {}),
    "float size": ((X, 2.0), {}),
    "input of 2 dimensions": ((X[0, 0], 2), {}),
    "empty image": ((X[:, :, :0], 2), {}),
    "no channels": ((X[:, :0], 2), {}),
    "complex": ((X + 1j, 2), {}),
}


@pytest.mark.parametrize(("args", "options"), WRONG_POOLINGS.values(), ids=WRONG_POOLINGS)
def test_wrong_poolings_raise_torchs_errors(args, options):
    want = outcome(F.max_pool2d, *args, **options)
    assert isinstance(want, tuple), "torch accepts this"
    assert_alike(outcome(max_pool2d, *args, **options), want)


INDICES = torch.arange(144).reshape(1, 4, 6, 6) % 36
WRONG_OTHER_POOLINGS = {
    "average: padding too large": ("avg_pool2d", (X, 2, 2, 2)),
    "average: window too large": ("avg_pool2d", (X, 7)),
    "average: stride 0": ("avg_pool2d", (X, 2, 0)),
    "average: three sizes": ("avg_pool2d", (X, (2, 2, 2))),
    "average: divisor 0": ("avg_pool2d", (X, 2, 2, 0, False, True, 0)),
    "average: input of 2 dimensions": ("avg_pool2d", (X[0, 0], 2)),
    "average: empty image": ("avg_pool2d", (X[:, :, :0], 2)),
    "adaptive average: three sizes": ("adaptive_avg_pool2d", (X, (2, 2, 2))),
    "adaptive average: one size": ("adaptive_avg_pool2d", (X, (2,))),
    "adaptive average: negative": ("adaptive_avg_pool2d", (X, (2, -1))),
    "adaptive average: float": ("adaptive_avg_pool2d", (X, (2, 1.5))),
    "adaptive average: input of 2 dimensions": ("adaptive_avg_pool2d", (X[0, 0], 2)),
    "adaptive average: input of 1 dimension": ("adaptive_avg_pool2d", (X[0, 0, 0], (2, None))),
    "adaptive average: complex": ("adaptive_avg_pool2d", (X + 1j, 2)),
    "adaptive maximum: empty image": ("adaptive_max_pool2d", (X[:, :, :0], 2)),
    "adaptive maximum: text": ("adaptive_max_pool2d", (X, "22")),
    "norm: window too large": ("lp_pool2d", (X, 2, 7)),
    "norm: 0": ("lp_pool2d", (X[:0], 0, 2)),
    "norm: window of one number": ("lp_pool2d", (X, 2, (2,))),
    "norm: text": ("lp_pool2d", (X, "2", 2)),
    "unpooling: index too large": ("max_unpool2d", (X, INDICES + 109, 2)),
    "unpooling: negative index": ("max_unpool2d", (X, INDICES - 1, 2)),
    "unpooling: window of one number": ("max_unpool2d", (X, INDICES, (2,))),
    "unpooling: int32": ("max_unpool2d", (X, INDICES.int(), 2)),
    "unpooling: shapes": ("max_unpool2d", (X, INDICES[..., :5], 2)),
    "unpooling: output_size": ("max_unpool2d", (X, INDICES, 2, 2, 0, (12, 15))),
    "unpooling: three sizes": ("max_unpool2d", (X, INDICES, 2, 2, 0, (12, 12, 12))),
}


@pytest.mark.parametrize(("name", "args"), WRONG_OTHER_POOLINGS.values(), ids=WRONG_OTHER_POOLINGS)
def test_other_wrong_poolings_raise_torchs_errors(name, args):
    want = outcome(getattr(F, name), *args)
    assert isinstance(want, tuple), "torch accepts this"
    assert_alike(outcome(getattr(functional, name), *args), want)


OTHER_POOLINGS_OF_TORCH = {
    "empty batch": ("avg_pool2d", (X[:0], 2)),
    "integers": ("avg_pool2d", (X.long(), 2)),
    "adaptive, empty batch": ("adaptive_avg_pool2d", (X[:0], (2, None))),
    "adaptive, no output": ("adaptive_avg_pool2d", (X, (2, 0))),
    "norm, empty batch": ("lp_pool2d", (X[:0], 2, 2)),
    "unpooling, no output": ("max_unpool2d", (X, INDICES, 2, 2, 6)),
}


@pytest.mark.parametrize(("name", "args"), OTHER_POOLINGS_OF_TORCH.values(), ids=OTHER_POOLINGS_OF_TORCH)
def test_poolings_that_only_torch_takes(name, args):
    assert_alike(getattr(functional, name)(*args), getattr(F, name)(*args))


def test_unpooling_under_autocast_and_deterministically():
    half = X.bfloat16()
    with torch.autocast("cpu"):
        assert_alike(functional.max_unpool2d(half, INDICES, 2), F.max_unpool2d(half, INDICES, 2))
    torch.use_deterministic_algorithms(True)
    try:
        want = outcome(F.max_unpool2d, X, INDICES, 2)
        assert_alike(outcome(functional.max_unpool2d, X, INDICES, 2), want)
    finally:
        torch.use_deterministic_algorithms(False)


def _subclass(tensor):
    return tensor.as_subclass(type("Tagged", (torch.Tensor,), {}))


TORCHS_CONVOLUTIONS = {
    "empty batch": (X[:0], WEIGHT),
    "no channels": (X[:, :0], WEIGHT[:, :0]),
    "integers": (X.long(), WEIGHT.long()),
    "complex": (X + 1j, WEIGHT + 1j),
    "subclass": (_subclass(X), WEIGHT),
    "mkldnn": (X.to_mkldnn(), WEIGHT),
    "stride of a tensor": (X, WEIGHT, BIAS, torch.tensor(2)),
}


@pytest.mark.parametrize("args", TORCHS_CONVOLUTIONS.values(), ids=TORCHS_CONVOLUTIONS)
def test_convolutions_that_only_torch_takes(args):
    got, want = conv2d(*args), F.conv2d(*args)
    if want.layout is not torch.strided:
        got, want = got.to_dense(), want.to_dense()
    assert_alike(got, want)


def test_activation_follows_torchs_convolution():
    assert_alike(conv2d(-X[:0], WEIGHT, activation="relu"), F.conv2d(-X[:0], WEIGHT))
    assert_alike(conv2d(-X.long(), WEIGHT.long(), activation="relu"), torch.zeros(1, 6, 4, 4, dtype=torch.long))


def test_an_unknown_activation_is_refused():
    with pytest.raises(ValueError, match=r"activation must be None, slopes or one of relu, .*; got 'swish'"):
        conv2d(X, WEIGHT, activation="swish")


@pytest.mark.parametrize("dtype", (torch.int32, torch.uint8), ids=str)
def test_pooling_of_integers(dtype):
    x = integers((1, 4, 6, 6), dtype, limit=3).abs()
    assert_alike(max_pool2d(x, 2), F.max_pool2d(x, 2))


def test_empty_batches_have_gradients():
    for function, torchs in ((conv2d, F.conv2d), (lambda x, w: max_pool2d(x, 2), lambda x, w: F.max_pool2d(x, 2))):
        x = X[:0].clone().requires_grad_()
        got, want = function(x, WEIGHT), torchs(x, WEIGHT)
        assert_alike(got, want)
        assert torch.autograd.grad(got.sum(), x)[0].shape == x.shape


@pytest.mark.filterwarnings("ignore:.torch.jit")
def test_transforms_and_forward_mode():
    batch = torch.stack((X, 2 * X))
    for function in (lambda x: conv2d(x, WEIGHT), lambda x: max_pool2d(x, 2)):
        assert torch.vmap(function)(batch).shape[0] == 2
        assert torch.func.grad(lambda x: function(x).sum())(X).shape == X.shape  # noqa: B023
        assert torch.func.jvp(function, (X,), (X,))[1].any()
        with torch.autograd.forward_ad.dual_level():
            dual = torch.autograd.forward_ad.make_dual(X, X)
            assert torch.autograd.forward_ad.unpack_dual(function(dual)).tangent is not None


@pytest.mark.filterwarnings("ignore:.torch.jit")
def test_tracing_records_torchs_operators():
    traced = torch.jit.trace(lambda x: max_pool2d(conv2d(x, WEIGHT), 2), X, check_trace=False)
    assert {"aten::_convolution", "aten::max_pool2d"} <= {node.kind() for node in traced.inlined_graph.nodes()}
