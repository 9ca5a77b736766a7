"""Every tile config of every search space computes the same exact sums; the choice of one."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from cases import ConvCase, PoolCase, integers
from triton import cdiv

from tritonconv import configs, launch
from tritonconv.configs import TileConfig, cpu, gemm
from tritonconv.cpu.target import describe as machine
from tritonconv.geometry import ConvGeometry, RowGeometry, adaptive_geometry

TARGETS = ("interpreter", "cpu", "sm_90", "gfx942")
# Wide enough that blocks differ, with tails in every dimension; taps of different residue classes.
CONV = ConvCase((2, 70, 9, 8), (72, 3, 1), stride=(2, 1), padding=(1, 0))
POOL = PoolCase((2, 70, 9, 8), (3, 2), (2, 1), padding=(1, 0))


def spaces(geometry, *ops):
    """(op, config) over all targets, each once."""
    pairs = [
        (op, config)
        for op in ops
        for target in TARGETS
        for dtype in (torch.float16, torch.float32, torch.float64)
        for config in configs.space(op, geometry, dtype, target)
    ]
    return list(dict.fromkeys(pairs))


def describe(value):
    return value if isinstance(value, str) else "-".join(str(field) for field in vars(value).values())


def run_conv(op, x, weight, dy, config):
    geometry = CONV.geometry
    if op == "fprop":
        return launch.conv.fprop(x, weight, None, geometry, config=config)
    if op == "dgrad":
        return launch.conv.dgrad(dy, weight, None, geometry, config=config)
    return launch.conv.wgrad(dy, x, geometry, config=config)


@pytest.fixture(scope="module")
def conv_truth():
    x, weight = (integers(shape, torch.float32).requires_grad_() for shape in (CONV.input, CONV.weight))
    y = F.conv2d(x, weight, **CONV.options)
    dy = integers(y.shape, torch.float32, seed=1)
    dx, dw = torch.autograd.grad(y, (x, weight), dy)
    return (x.detach(), weight.detach(), dy), {"fprop": y.detach(), "dgrad": dx, "wgrad": dw}


GROUPED = [(op, TileConfig(32, 16, 16, GROUP_M=3)) for op in ("fprop", "dgrad")]
SPLIT = [(op, TileConfig(64, 64, 16, SPLIT=split)) for op in ("fprop", "dgrad", "wgrad") for split in (2, 3, 7)]


@pytest.mark.parametrize(
    ("op", "config"), spaces(CONV.geometry, "fprop", "dgrad", "wgrad") + GROUPED + SPLIT, ids=describe
)
def test_every_conv_config_is_exact(op, config, conv_truth, device):
    operands, truth = conv_truth
    assert torch.equal(run_conv(op, *(t.to(device) for t in operands), config).cpu(), truth[op])


ROWS = RowGeometry(2, 70, 1, 150, 72, 1, 3, padding=((0, 0), (4, 1)), dilation=(1, 2))
ROW_OPS = "conv1d_fprop", "conv1d_dgrad", "conv1d_wgrad"
STRIDED_ROWS = replace(ROWS, stride=(1, 3))


@pytest.mark.parametrize(
    ("geometry", "op", "config"),
    [
        *((geometry, *case) for geometry in (ROWS, STRIDED_ROWS) for case in spaces(geometry, *ROW_OPS)),
        (ROWS, "conv1d_wgrad", TileConfig(32, 64, 16, SPLIT=3)),
    ],
    ids=describe,
)
def test_every_conv1d_config_is_exact(geometry, op, config, device):
    x = integers((2, 70, 1, 150), torch.float32, device).requires_grad_()
    weight = integers((72, 70, 1, 3), torch.float32, device).requires_grad_()
    y = F.conv2d(F.pad(x, (4, 1)), weight, dilation=2, stride=geometry.stride)
    dy = integers(y.shape, torch.float32, device, seed=1)
    dx, dw = torch.autograd.grad(y, (x, weight), dy)
    x, weight = x.detach(), weight.detach()
    if op == "conv1d_fprop":
        assert torch.equal(launch.conv.fprop(x, weight, None, geometry, config=config), y)
    elif op == "conv1d_dgrad":
        assert torch.equal(launch.conv.dgrad(dy, weight, None, geometry, config=config), dx)
    else:
        assert torch.equal(launch.conv.wgrad(dy, x, geometry, config=config), dw)


@pytest.mark.parametrize(("op", "config"), spaces(POOL.geometry, "max_pool", "max_pool_backward"), ids=describe)
def test_every_pool_config_is_exact(op, config, device):
    x = integers(POOL.input, torch.float32, device).requires_grad_()
    y, indices = F.max_pool2d(x, **POOL.options, return_indices=True)
    if op == "max_pool":
        got = launch.pool.max_pool(x.detach(), POOL.geometry, torch.int64, config)
        assert all(map(torch.equal, got, (y, indices)))
    else:
        dy = integers(y.shape, torch.float32, device, seed=1)
        got = launch.pool.max_pool_backward(dy, indices, POOL.geometry, config)
        assert torch.equal(got, torch.autograd.grad(y, x, dy)[0])


@pytest.mark.parametrize(
    ("op", "config"), spaces(POOL.geometry, "avg_pool", "avg_pool_backward", "global_avg_pool"), ids=describe
)
def test_every_average_config_is_exact(op, config, device):
    x, geometry = integers(POOL.input, torch.float32, device) * 72, POOL.geometry
    if op == "avg_pool":
        got = launch.pool.avg_pool(x, geometry, 6, config=config)
        assert torch.equal(got, F.avg_pool2d(x, (3, 2), (2, 1), (1, 0)))
    elif op == "avg_pool_backward":
        y = F.avg_pool2d(x.requires_grad_(), (3, 2), (2, 1), (1, 0))
        dy = integers(y.shape, torch.float32, device, seed=1) * 6
        assert torch.equal(launch.pool.avg_pool_backward(dy, geometry, 6, config), torch.autograd.grad(y, x, dy)[0])
    else:
        got = launch.pool.avg_pool(x, adaptive_geometry(*POOL.input, 1, 1), 72, config=config)
        assert torch.equal(got, x.sum((2, 3), keepdim=True) / 72)


@pytest.mark.parametrize("target", TARGETS)
def test_a_stored_config_goes_before_the_predicted_one(target, monkeypatch):
    def chosen():
        return launch.conv.fprop_launch(target, CONV.geometry, torch.float32, "ieee", None).constexprs["BM"]

    predicted = configs.space("fprop", CONV.geometry, torch.float32, target)[0]
    monkeypatch.setattr(launch.common.autotune, "lookup", lambda key: None)
    assert chosen() == predicted.BM
    keys = []
    stored = {"BM": 16, "BN": 16, "BK": 16}
    monkeypatch.setattr(launch.common.autotune, "lookup", lambda key: keys.append(key) or stored)
    assert chosen() == 16
    assert keys[0].items() >= {"op": "fprop", "dtype": "float32", "target": target, "K": 72, "stride": (2, 1)}.items()


@pytest.mark.parametrize("op", ("fprop", "dgrad", "wgrad"))
@pytest.mark.parametrize("target", TARGETS)
def test_spaces_hold_powers_of_two_that_a_dot_takes(op, target):
    smallest = 1 if target in ("interpreter", "cpu") else 16
    for case in (CONV, ConvCase((1, 1, 3, 3), (1, 3, 3)), ConvCase((64, 512, 7, 7), (512, 3, 3), padding=(1, 1))):
        for config in configs.space(op, case.geometry, torch.float16, target):
            for block in (config.BM, config.BN, config.BK):
                assert block >= smallest
                assert block & (block - 1) == 0
            taps = 1 if op == "wgrad" else case.geometry.taps
            turns = taps * cdiv(case.geometry.gemm(op)[2], config.BK)
            assert config.SPLIT == 1 or turns > config.SPLIT


X86 = "x86_64-linux"
MACHINES = {
    "AVX-512": machine(X86, "znver4", "+avx,+avx2,+avx512f,+avx512vl"),
    "AVX2": machine(X86, "haswell", "+avx,+avx2"),
    "NEON": machine("aarch64-linux", "neoverse-n1", "+neon"),
}


@pytest.fixture(params=MACHINES)
def host(request, monkeypatch):
    monkeypatch.setattr(cpu, "host", lambda: MACHINES[request.param])
    return MACHINES[request.param]


def cycles(tile: TileConfig, geometry: ConvGeometry, op: str = "fprop") -> float:
    return gemm.cpu_cycles(tile, op, geometry, 4)


def test_a_cpu_tile_pays_for_the_rows_that_there_are(host):
    """Beyond the last row a register tile is skipped, so a tile much too high costs nothing more."""
    geometry = ConvGeometry(1, 64, 7, 7, 16, 3, 3)  # 25 rows
    assert cycles(TileConfig(32, 16, 64), geometry) == cycles(TileConfig(256, 16, 64), geometry)
    taller = ConvGeometry(1, 64, 8, 7, 16, 3, 3)
    assert cycles(TileConfig(256, 16, 64), geometry) <= cycles(TileConfig(256, 16, 64), taller)


def test_a_cpu_tile_that_register_tiles_do_not_divide_costs_more_a_row(host):
    """Its last, low register tile waits for the latency of its sums."""
    rows, _ = host.dot_tile(1)
    geometry = ConvGeometry(1, 256, 66, 66, host.lanes(4), 3, 3)  # 4096 rows
    whole, ragged = (cycles(TileConfig(BM, host.lanes(4), 64), geometry) for BM in (2 * rows, 2 * rows + 1))
    assert ragged > 1.05 * whole


def test_no_cpu_tile_makes_a_loop_of_one_turn():
    pointwise = ConvGeometry(1, 64, 56, 56, 256, 1, 1)
    for op, reduction in (("fprop", 64), ("dgrad", 256)):
        assert all(reduction >= 2 * tile.BK for tile in configs.space(op, pointwise, torch.float32, "cpu"))


def test_idle_threads_cost(host, monkeypatch):
    geometry, tile = ConvGeometry(1, 64, 56, 56, 64, 3, 3), TileConfig(64, 64, 32)  # nine programs, one a tap
    costs = []
    for threads in (2, 9):
        monkeypatch.setitem(cpu.MACHINES, "cpu", replace(cpu.MACHINES["cpu"], programs=threads))
        costs.append(cycles(tile, geometry, "wgrad"))
    assert costs[0] == 5 * costs[1]


def test_the_thread_that_has_most_rows_counts_half(monkeypatch):
    """Two of four tiles of 64 rows, whether the others have 96 or 68 rows between them; the other half is all rows."""
    tile, (more, fewer) = TileConfig(64, 64, 64), (ConvGeometry(1, 384, side, 14, 64, 1, 1) for side in (16, 14))
    saved = []
    for threads in (1, 2):
        monkeypatch.setitem(cpu.MACHINES, "cpu", replace(cpu.MACHINES["cpu"], programs=threads))
        saved.append(cycles(tile, more) - cycles(tile, fewer))
    assert saved[1] == pytest.approx(saved[0] / 4) and saved[0] > 0
