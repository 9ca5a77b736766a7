"""The operators of torch.library: what torch checks of each, and what compilers, and modes that listen to operators,
make of calls and of patched models.

Calls are those of the table of operators; samples of an operator are what eager calls hand to it.
"""

import copy
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from functorch.compile import make_boxed_func
from torch import nn
from torch._dynamo.backends.common import aot_autograd
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

import tritonconv
from benchmarks.operators import OPERATORS, Operator
from benchmarks.zoo import NETWORKS
from tritonconv import engines, functional
from tritonconv.ops import library

INDICES = torch.tensor([[0, 8], [16, 25]]).expand(2, 3, 2, 2)
UNPOOLING = Operator(
    "max_unpool2d",
    lambda x: functional.max_unpool2d(x, INDICES, 3),
    lambda x: F.max_unpool2d(x, INDICES, 3),
    ((2, 3, 2, 2),),
)
CALLS = (*OPERATORS, UNPOOLING)
F64 = torch.float64


@pytest.fixture(autouse=True)
def machine_code():
    torch._dynamo.reset()
    with engines.use("native"):
        yield


def tensors_of(call: Operator, requires_grad: bool = True) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(s, generator=generator, dtype=F64, requires_grad=requires_grad) for s in call.shapes]


def results(function: Callable, tensors: list[torch.Tensor]) -> list[torch.Tensor]:
    """The output and the gradients."""
    y = function(*tensors)
    return [y, *torch.autograd.grad(y.square().sum(), tensors)]


def recording() -> tuple[Callable, list[str]]:
    """A backend that runs graphs as they are, and the names of the operators in them."""
    names = []

    def compiler(graph, inputs):
        names.extend(str(node.target) for node in graph.graph.nodes if node.op == "call_function")
        return make_boxed_func(graph.forward)

    return aot_autograd(fw_compiler=compiler), names


def assert_ours(names: list[str]) -> None:
    assert any(name.startswith("tritonconv.") for name in names)
    assert not [name for name in names if name.startswith("aten.") and ("conv" in name or "pool" in name)]


def assert_same(got: list[torch.Tensor], want: list[torch.Tensor]) -> None:
    torch.testing.assert_close(got, want)
    assert [t.stride() for t in got] == [t.stride() for t in want]


@pytest.fixture(scope="module")
def samples() -> dict[type, dict[tuple, tuple]]:
    """Per operator inputs of every kind: which are None, which have gradients."""
    found: dict[type, dict[tuple, tuple]] = {}
    call = library.Operator.call.__func__

    def record(cls, *inputs):
        kind = tuple(v.requires_grad if isinstance(v, torch.Tensor) else type(v) for v in inputs)
        found.setdefault(cls, {}).setdefault(kind, inputs)
        return call(cls, *inputs)

    with pytest.MonkeyPatch.context() as patch, engines.use("native"):
        patch.setattr(library.Operator, "call", classmethod(record))
        for each in CALLS:
            each.ours(*tensors_of(each, requires_grad=False))
            tensors = tensors_of(each)
            gradients = torch.autograd.grad(each.ours(*tensors).square().sum(), tensors, create_graph=True)
            sum(gradient.square().sum() for gradient in gradients).backward()
    return found


@pytest.mark.parametrize("name", library.OPERATORS)
def test_an_operator_passes_torchs_checks(name, samples):
    operator = library.OPERATORS[name]

    def input_of(value):
        if not isinstance(value, torch.Tensor):
            return library._encoded(value)
        return value.detach().clone().requires_grad_(value.requires_grad and hasattr(operator, "save"))

    for inputs in samples[operator].values():
        torch.library.opcheck(operator.overload, tuple(map(input_of, inputs)))


@pytest.mark.parametrize("call", CALLS, ids=lambda call: call.name)
def test_a_compiled_call_runs_our_operators(call):
    backend, names = recording()
    compiled = torch.compile(call.ours, fullgraph=True, backend=backend)
    assert_same(results(compiled, tensors_of(call)), results(call.ours, tensors_of(call)))
    assert_ours(names)


class Listening(TorchDispatchMode):
    """Notes the names of the operators that run."""

    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.names.append(str(func))
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("call", CALLS, ids=lambda call: call.name)
def test_a_mode_hears_of_our_operators(call):
    with Listening() as mode:
        got = results(call.ours, tensors_of(call))
    assert_same(got, results(call.ours, tensors_of(call)))
    assert_ours(mode.names)


def every_kind(x, w, v, residual, mean, var):
    x = functional.conv2d(x, w, stride=2, padding=1, residual=residual, activation="hardswish")
    x = functional.batch_norm(x, mean, var, training=True, activation="relu")
    x = functional.max_pool2d(x, 3, 2, 1) + functional.avg_pool2d(x, 3, 2, 1)
    x = functional.conv_transpose2d(x, w, stride=2, activation="tanh")
    x = functional.lp_pool2d(functional.adaptive_max_pool2d(x, (5, None)), 2.0, 2)
    x = functional.conv2d_batch_norm(x, w, None, None, None, training=True, padding=1)
    return functional.causal_conv1d(functional.adaptive_avg_pool2d(x, (1, 3)).squeeze(2), v, dilation=2)


def operands(N: int, memory_format: torch.memory_format = torch.contiguous_format) -> list[torch.Tensor]:
    shapes = (N, 3, 16, 12), (4, 3, 3, 3), (5, 4, 2), (N, 4, 8, 6)
    tensors = [torch.randn(shape, dtype=F64).requires_grad_() for shape in shapes]
    formatted = [t.contiguous(memory_format=memory_format) if t.dim() == 4 else t for t in tensors]
    return [*formatted, torch.zeros(4, dtype=F64), torch.ones(4, dtype=F64)]


def stepped(function: Callable, tensors: list[torch.Tensor]) -> list[torch.Tensor]:
    """The output, the gradients, and the statistics, which the function updates."""
    *differentiable, mean, var = tensors
    mean, var = mean.clone(), var.clone()
    y = function(*differentiable, mean, var)
    return [y, *torch.autograd.grad(y.square().sum(), differentiable), mean, var]


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_one_graph_serves_every_batch(memory_format):
    backend, names = recording()
    compiled = torch.compile(every_kind, fullgraph=True, backend=backend)
    for N in (2, 3):
        tensors = operands(N, memory_format)
        torch._dynamo.mark_dynamic(tensors[0], 0)
        torch._dynamo.mark_dynamic(tensors[3], 0)
        assert_same(stepped(compiled, tensors), stepped(every_kind, tensors))
    assert names.count("tritonconv.fprop_with_moments.default") == 1
    assert_ours(names)


def test_numbers_that_a_compiler_keeps_open_are_fixed():
    tensors = tensors_of(next(call for call in CALLS if call.name == "conv2d"))
    backend, names = recording()
    compiled = torch.compile(functional.conv2d, fullgraph=True, backend=backend, dynamic=True)
    for stride in (1, 2):
        assert_same([compiled(*tensors, stride=stride)], [functional.conv2d(*tensors, stride=stride)])
    assert_ours(names)


def test_inductor_computes_the_same():
    """It lays out gradients as it likes."""
    tensors = operands(2)
    got, want = stepped(torch.compile(every_kind, fullgraph=True), tensors), stepped(every_kind, tensors)
    torch.testing.assert_close(got, want)
    assert got[0].stride() == want[0].stride()


def trained(model: nn.Module, run: Callable, x: torch.Tensor) -> list[torch.Tensor]:
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-2, momentum=0.9)
    for _ in range(3):
        optimizer.zero_grad()
        run(x).square().mean().backward()
        optimizer.step()
    return list(model.state_dict().values())


class Skips(nn.Module):
    """A residual block and, as in a U-Net, a way up that meets its input again."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4), nn.ReLU(inplace=True))
        self.conv1, self.bn1 = nn.Conv2d(4, 4, 3, padding=1, groups=4, bias=False), nn.BatchNorm2d(4)
        self.conv2, self.bn2 = nn.Conv2d(4, 4, 1, bias=False), nn.BatchNorm2d(4)
        self.pool, self.relu = nn.MaxPool2d(2), nn.ReLU(inplace=True)
        self.up, self.head = nn.ConvTranspose2d(4, 3, 2, stride=2), nn.Conv2d(7, 2, 1)

    def forward(self, x):
        top = self.stem(x)
        x = self.pool(top)
        x = self.relu(self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x))))) + x)
        return self.head(torch.cat([self.up(x), top], 1))


def test_a_compiled_patched_network_trains_and_infers_as_before():
    torch.manual_seed(0)
    model = tritonconv.patch(Skips().double())
    twin, x = copy.deepcopy(model), torch.randn(2, 3, 8, 8, dtype=F64)
    backend, names = recording()
    compiled = torch.compile(model, fullgraph=True, backend=backend)
    torch.testing.assert_close(trained(model, compiled, x), trained(twin, twin, x))
    assert_ours(names)
    names.clear()
    model.eval(), twin.eval()
    with torch.no_grad():
        torch.testing.assert_close(compiled(x), twin(x))
        for each in (model, twin):  # whose packed weights a graph must not keep
            for parameter in each.parameters():
                parameter.mul_(1.25)
        torch.testing.assert_close(compiled(x), twin(x))
    assert_ours(names)
    assert "tritonconv.normalize.default" not in names


def test_what_records_operators_repeats_them_for_other_inputs():
    torch.manual_seed(0)
    model = tritonconv.patch(Skips().double()).eval()
    x = torch.randn(2, 3, 8, 8, dtype=F64)
    with torch.no_grad():
        for _ in range(4):  # the last ones are repeated
            model(x)
        graph = make_fx(lambda x: model(x))(x)
        torch.testing.assert_close(graph(2 * x), model(2 * x))
    assert_ours([str(node.target) for node in graph.graph.nodes if node.op == "call_function"])


def flops(model: nn.Module, x: torch.Tensor) -> list[int]:
    """Those of an inference, and of a step."""
    with FlopCounterMode(display=False) as inference, torch.no_grad():
        model(x)
    with FlopCounterMode(display=False) as step:
        model(x).sum().backward()
    return [inference.get_total_flops(), step.get_total_flops()]


def test_flops_are_those_of_the_unpatched_network():
    plain = nn.Sequential(Skips(), nn.Conv2d(2, 4, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(36, 5))
    patched, x = tritonconv.patch(copy.deepcopy(plain)), torch.randn(2, 3, 8, 8)
    for training in (True, False):
        assert flops(patched.train(training), x) == flops(plain.train(training), x)


def test_autocast_in_a_graph():
    tensors = [t.float() for t in operands(2)]

    def call(*tensors):
        with torch.autocast("cpu", torch.bfloat16):
            return functional.conv2d(*tensors[:2], padding=1, activation="relu")

    backend, names = recording()
    got, want = torch.compile(call, fullgraph=True, backend=backend)(*tensors), call(*tensors)
    assert got.dtype is torch.bfloat16
    assert_same([got], [want])
    assert_ours(names)


def test_what_no_kernel_takes_is_torchs_in_a_graph():
    x, w = torch.ones(1, 2, 4, 4, dtype=torch.int64), torch.ones(3, 2, 1, 1, dtype=torch.int64)
    backend, names = recording()
    assert_same([torch.compile(functional.conv2d, fullgraph=True, backend=backend)(x, w)], [F.conv2d(x, w)])
    assert names == ["aten.convolution.default"]


@pytest.mark.parametrize("strict", [False, True])
def test_what_is_exported_runs_where_tritonconv_is_absent(strict):
    model = tritonconv.patch(NETWORKS["LeNet-5"].build(width=0).double()).eval()
    x = torch.randn(2, 1, 32, 32, dtype=F64)
    exported = torch.export.export(model, (x,), strict=strict)
    assert not any("tritonconv" in str(node.target) for node in exported.graph.nodes)
    torch.testing.assert_close(exported.module()(x), model(x))
