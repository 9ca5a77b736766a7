"""The networks of `benchmarks.zoo`, patched and plain, side by side; on machine code only, as they are large."""

import copy

import pytest
import torch
from torch.nn import functional as F

import tritonconv
from benchmarks.zoo import NETWORKS
from tritonconv import engines
from tritonconv.patching import swap

# As torchvision counts them, or the papers.
PARAMETERS = {
    "AlexNet": 61_100_840,
    "VGG-16": 138_357_544,
    "ResNet-18": 11_689_512,
    "ResNet-50": 25_557_032,
    "DenseNet-121": 7_978_856,
    "MobileNetV2": 3_504_872,
}
# As many different layers as a network has at all, in fewer places: each takes kernels of its own.
SHALLOW = {"DenseNet-121": {"depths": (1, 2, 1, 1)}, "ResNet-50": {"depths": (2, 2, 1, 1)}}
STEPS = 6  # the third is recorded where that is done in training, and later ones repeat it

pytestmark = pytest.mark.filterwarnings("ignore:patch. none of the:UserWarning")


@pytest.fixture(autouse=True)
def one_thread_on_machine_code():
    before = torch.get_num_threads()
    torch.set_num_threads(1)  # tests run side by side
    with engines.use("native"):
        yield
    torch.set_num_threads(before)


def assert_same(got: torch.Tensor, want: torch.Tensor) -> None:
    """Close in float64, by the largest element: others may be small differences of large numbers."""
    scale = want.abs().max().clamp(min=1e-6) if want.is_floating_point() else 1
    torch.testing.assert_close(got / scale, want / scale)


def trained(model: torch.nn.Module, x: torch.Tensor) -> list[torch.Tensor]:
    """The loss at every step, and at last all parameters and buffers."""
    torch.manual_seed(1)  # of dropout
    # So slowly that rounding stays small: at 1e-3 one digit of the input moves the plain MobileNetV2's losses by 1 %.
    optimizer = torch.optim.SGD(model.train().parameters(), lr=1e-5, momentum=0.9)
    losses = []
    for _ in range(STEPS):
        y = model(x)
        loss = F.mse_loss(y, torch.ones_like(y))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.detach())
    return [*losses, *model.state_dict().values()]


@pytest.mark.parametrize("name", PARAMETERS)
def test_a_network_has_the_size_that_was_published(name):
    with torch.device("meta"):
        model = NETWORKS[name].factory()
    assert sum(parameter.numel() for parameter in model.parameters()) == PARAMETERS[name]


@pytest.mark.parametrize("name", NETWORKS)
def test_a_patched_network_trains_and_infers_as_before(name):
    network = NETWORKS[name]
    plain = network.build(width=0, **SHALLOW.get(name, {})).double()
    before, patched = copy.deepcopy(plain), tritonconv.patch(copy.deepcopy(plain))
    x = torch.randn(2, *(network.small or network.input), dtype=torch.float64)
    for got, want in zip(trained(patched, x), trained(plain, x), strict=True):
        assert_same(got, want)
    assert not any(map(torch.equal, plain.parameters(), before.parameters()))
    replays = [plan.replays for module in patched.eval().modules() if (plan := swap.plan_of(module)) and plan.replays]
    with torch.no_grad():
        for memory_format in (torch.contiguous_format, torch.channels_last)[: x.dim() - 2]:
            x = x.contiguous(memory_format=memory_format)
            want = plain.eval()(x)
            for _ in range(5):  # of which the last are replayed
                assert_same(patched(x), want)
    # Unpooling looks at its indices before it launches.
    assert any(program.calls for each in replays for _, program in each._programs.values()) == (name != "DeconvNet")
