"""PReLU in the kernels of convolutions, and by itself where gradients are wanted, against torch's."""

import copy

import pytest
import torch
import torch.nn.functional as F
from cases import CONV_CASES, FLOATS, ConvCase, integers, normal
from torch import nn

import tritonconv
from tritonconv import engines, functional, launch
from tritonconv import nn as modules
from tritonconv.configs import TileConfig
from tritonconv.launch.norm import Norm

CASES = (*CONV_CASES[:2], CONV_CASES[3], *CONV_CASES[8:11])
IMAGES, ROWS = ((2, 6, 5, 7), (6, 6, 3, 3)), ((2, 6, 9), (6, 6, 3))
KINDS = {"conv2d": IMAGES, "conv1d": ROWS, "conv_transpose2d": IMAGES}


def operands(shapes, dtype, device, slopes: int) -> list[torch.Tensor]:
    """x, weight, bias, and slopes of either sign, zero too."""
    x, weight = (integers(shape, dtype, device, 2) for shape in shapes)
    return [x, weight, integers(weight.shape[:1], dtype, device), integers((slopes,), dtype, device, seed=4)]


def slopes_of(case: ConvCase) -> tuple[int, int]:
    return case.kernel[0], 1


@pytest.mark.parametrize(("case", "slopes"), [(case, slopes) for case in CASES for slopes in slopes_of(case)], ids=str)
def test_in_the_kernel_of_a_convolution(case, slopes, device):
    x, weight, bias, slope = operands((case.input, case.weight), torch.float32, device, slopes)
    for memory_format in (torch.contiguous_format, torch.channels_last):
        x = x.contiguous(memory_format=memory_format)
        z = F.conv2d(x, weight, bias, **case.options)
        y = functional.conv2d(x, weight, bias, **case.options, activation=slope)
        assert torch.equal(y, F.prelu(z, slope))
        assert y.stride() == z.stride()
        y = functional.conv2d(x, weight, bias, **case.options, residual=-z, activation=slope)
        assert torch.equal(y, F.prelu(z - z, slope))


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("kind", KINDS)
def test_behind_a_norm_in_every_dtype(kind, dtype, device):
    x, weight, bias, slope = operands(KINDS[kind], dtype, device, 6)
    norm = torch.ones_like(bias), torch.full_like(bias, 0.125), slope, bias
    y = getattr(functional, f"{kind}_batch_norm")(x, weight, bias, *norm, eps=0.125, activation=slope)
    z = getattr(F, kind)(*(t.double() for t in (x, weight, bias)))
    assert torch.equal(y, F.prelu(F.batch_norm(z, *(t.double() for t in norm), eps=0.125), slope.double()).to(dtype))


@pytest.mark.parametrize("one", (False, True))
def test_of_split_sums(one, device):
    case = CONV_CASES[-1]
    x, weight, bias, slope = operands((case.input, case.weight), torch.float32, device, 1 if one else 33)
    config, text = TileConfig(16, 16, 16, SPLIT=3), "prelu(1)" if one else "prelu"
    y = launch.conv.fprop(x, weight, bias, case.geometry, text, config=config, norm=Norm(slope=slope))
    assert torch.equal(y, F.prelu(F.conv2d(x, weight, bias, **case.options), slope))


def test_by_winograds_algorithm():
    case = ConvCase((1, 20, 9, 6), (17, 3, 3), padding=(1, 1))
    x, weight, bias, slope = (normal(shape) for shape in (case.input, case.weight, (17,), (17,)))
    with engines.use("native"):
        run = launch.winograd.bind_fprop(x, weight, bias, case.geometry, "prelu", norm=Norm(slope=slope))
        torch.testing.assert_close(run(x), F.prelu(F.conv2d(x, weight, bias, padding=1), slope))


def gradients(function, tensors: list[torch.Tensor], wanted: tuple[int, ...]) -> list[torch.Tensor]:
    tensors = [t.detach().requires_grad_(i in wanted) for i, t in enumerate(tensors)]
    y = function(*tensors)
    return [y, *torch.autograd.grad(y, [tensors[i] for i in wanted], integers(y.shape, y.dtype, y.device))]


@pytest.mark.parametrize("wanted", ((0, 1, 2, 3), (3,), (0,), (2, 3)), ids=str)
@pytest.mark.parametrize("slopes", (6, 1))
@pytest.mark.parametrize("kind", KINDS)
def test_gradients(kind, slopes, wanted, device):
    tensors = operands(KINDS[kind], torch.float32, device, slopes)
    for x in (tensors[0], tensors[0].transpose(-1, -2).contiguous().transpose(-1, -2)):
        given = [x, *tensors[1:]]
        ours = gradients(lambda x, w, b, s: getattr(functional, kind)(x, w, b, activation=s), given, wanted)
        theirs = gradients(lambda x, w, b, s: F.prelu(getattr(F, kind)(x, w, b), s), given, wanted)
        assert all(map(torch.equal, ours, theirs))


def test_nan_and_infinity(device):
    x = torch.tensor([float("nan"), float("inf"), -float("inf"), -0.0, 2.0], device=device).view(1, 1, 1, 5)
    weight, slope = torch.ones(1, 1, 1, 1, device=device), torch.tensor([-0.5], device=device)
    ours = gradients(lambda x, s: functional.conv2d(x, weight, activation=s), [x, slope], (0, 1))
    theirs = gradients(lambda x, s: F.prelu(F.conv2d(x, weight), s), [x, slope], (0, 1))
    torch.testing.assert_close(ours, theirs, rtol=0, atol=0, equal_nan=True)
    y = functional.conv2d(x, weight, activation=slope)
    torch.testing.assert_close(y, theirs[0], rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("training", (False, True))
def test_with_pooling_and_with_autocast(training, device):
    x, weight, bias, slope = operands(IMAGES, torch.float32, device, 6)
    slope.requires_grad_(training)
    y = functional.conv2d(x, weight, bias, activation=slope, max_pool=2)
    assert torch.equal(y, F.max_pool2d(F.prelu(F.conv2d(x, weight, bias), slope), 2))
    with torch.autocast(device.type, torch.bfloat16):
        y, want = functional.conv2d(x, weight, activation=slope), F.prelu(F.conv2d(x, weight), slope)
    assert y.dtype is torch.bfloat16
    assert torch.equal(y, want)


def test_slopes_that_do_not_fit_are_torchs_business(device):
    x, weight, bias, slope = operands(IMAGES, torch.float32, device, 6)
    for call in (
        lambda s: functional.conv2d(x, weight, activation=s),
        lambda s: functional.conv2d_batch_norm(x, weight, None, bias, bias.square() + 1, activation=s),
        lambda s: functional.conv_transpose2d(x, weight, activation=s),
        lambda s: functional.conv1d(x[:, :, 0], weight[:, :, 0], activation=s),
        lambda s: functional.batch_norm(x, bias, bias.square() + 1, activation=s),
    ):
        with pytest.raises(RuntimeError, match="parameter numbers = 5 and channel size = 6"):
            call(slope[:5])
        with pytest.raises(RuntimeError, match="Type promoting not supported. Got Float and Double"):
            call(slope.double())
        with pytest.raises(RuntimeError, match="to be a scalar or 1D tensor"):
            call(slope[None])
    with pytest.raises(RuntimeError, match="parameter numbers = 6 and channel size = 3"):  # of one image
        functional.conv2d(x[0], weight, activation=slope)
    y = functional.conv2d(x[0], weight, activation=slope[:3])
    assert torch.equal(y, F.prelu(F.conv2d(x[0], weight), slope[:3]))
    scalar = slope[0].clone()
    assert torch.equal(functional.conv2d(x, weight, activation=scalar), F.prelu(F.conv2d(x, weight), scalar))


def test_modules(device):
    ours = modules.Conv2d(3, 4, 3, activation=nn.PReLU(4)).to(device)
    assert list(ours.state_dict()) == ["weight", "bias", "activation.weight"]
    x = integers((2, 3, 6, 5), torch.float32, device)
    want = ours.activation(F.conv2d(x, ours.weight, ours.bias))
    torch.testing.assert_close(ours(x), want)
    with torch.no_grad():
        torch.testing.assert_close(ours(x), want)


class Upscaling(nn.Module):
    """As SRGAN's generator and ENet have it: PReLU behind convolutions, plain or transposed, norms, additions."""

    def __init__(self):
        super().__init__()
        self.first, self.act = nn.Conv2d(3, 8, 3, padding=1), nn.PReLU()
        self.conv1, self.bn1, self.act1 = nn.Conv2d(8, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.PReLU(8)
        self.conv2, self.bn2 = nn.Conv2d(8, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8)
        self.slope = nn.Parameter(torch.full((8,), 0.25))
        self.up, self.norm, self.act3 = nn.ConvTranspose2d(8, 4, 4, 2, 1), nn.BatchNorm2d(4), nn.PReLU(4)
        self.last, self.act4 = nn.Conv2d(4, 4, 3, groups=4), nn.PReLU(4)

    def forward(self, x):
        x = self.act(self.first(x))
        x = F.prelu(self.bn2(self.conv2(self.act1(self.bn1(self.conv1(x))))) + x, self.slope)
        return self.act4(self.last(self.act3(self.norm(self.up(x)))))


def test_a_patched_network_trains_and_infers_as_before():
    torch.manual_seed(0)
    plain = Upscaling().double()
    for name, parameter in plain.named_parameters():
        if "act" in name or name == "slope":
            nn.init.uniform_(parameter, -1, 1)
    model = tritonconv.patch(copy.deepcopy(plain), strict=True)
    assert [site.pattern for site in tritonconv.report(model).sites] == [
        "conv2d+prelu", "conv2d+batch_norm+prelu", "conv2d+batch_norm+add+prelu",
        "conv_transpose2d+batch_norm+prelu", "conv2d+prelu",
    ]  # fmt: skip
    x = normal((2, 3, 9, 7))
    for each in (plain, model):
        optimizer = torch.optim.SGD(each.parameters(), lr=0.1, momentum=0.9)
        for _ in range(3):
            optimizer.zero_grad()
            each(x).square().mean().backward()
            optimizer.step()
    torch.testing.assert_close(model.state_dict(), plain.state_dict())
    for each in (plain, model):
        each.eval()
    with torch.no_grad():
        for _ in range(2):  # the second repeats the first
            torch.testing.assert_close(model(x), plain(x))
        for each in (plain, model):
            each.act1.weight.neg_()
            each.act4.weight = nn.Parameter(each.act4.weight * 2)
        torch.testing.assert_close(model(x), plain(x))


def test_behind_a_fully_connected_layer():
    plain = nn.Sequential(nn.Conv2d(2, 4, 3), nn.Flatten(), nn.Linear(16, 5), nn.PReLU(5)).double()
    model = tritonconv.patch(copy.deepcopy(plain))
    for batch in (1, 3):  # by a kernel, and by torch
        x = normal((batch, 2, 4, 4))
        torch.testing.assert_close(model(x), plain(x))
        with torch.no_grad():
            torch.testing.assert_close(model(x), plain(x))
