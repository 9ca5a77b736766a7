"""Concatenations in replayed calls: which parts are written in place, and that the results are the same bits."""

import threading
from collections import Counter
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from cases import integers
from torch import nn

import tritonconv
from tritonconv import engines, functional, replay
from tritonconv.cpu import engine
from tritonconv.geometry import ConvGeometry, PoolGeometry
from tritonconv.launch import pool, winograd
from tritonconv.replay import joining, program

f32 = torch.float32


@pytest.fixture(autouse=True)
def poisoned_memory():
    """Memory as torch gives it: what fills it would stand between the launches."""


def conv(C: int, K: int, R: int = 3) -> nn.Conv2d:
    return nn.Conv2d(C, K, R, padding=R // 2)


class Dense(nn.Module):
    """Layers of 3 channels, each of which reads all before it."""

    def __init__(self, lists: bool):
        super().__init__()
        self.lists, self.first = lists, conv(2, 5)
        self.layers = nn.ModuleList(
            nn.Sequential(nn.BatchNorm2d(5 + 3 * i), nn.ReLU(), conv(5 + 3 * i, 3)) for i in range(3)
        )
        self.last = nn.Sequential(nn.BatchNorm2d(14), nn.ReLU(), conv(14, 2, 1))

    def forward(self, x):
        parts = [self.first(x)]
        for layer in self.layers:
            whole = torch.cat(parts, 1)
            if not self.lists:
                parts = [whole]
            parts.append(layer(whole))
        return self.last(torch.cat(parts, 1))


class Beside(nn.Module):
    """What two convolutions give, side by side, `joined` so; the second by Winograd's algorithm."""

    def __init__(self, join, joined: int = 35):
        super().__init__()
        self.join, self.a, self.b, self.last = join, conv(32, 3, 1), conv(32, 32), conv(joined, 2)

    def forward(self, x):
        x = torch.cat([x] * 16, -3)
        return self.join(self.a(x), self.b(x), self.last)


def plainly(a, b, last):
    return last(torch.cat((a, b), 1))


def read_by_torch(a, b, last):
    return last(torch.cat((a, b), 1)) + torch.sigmoid(a).sum()


def twice(a, b, last):
    return last(torch.cat((a, b, a), dim=1))


def given_back(a, b, last):
    return torch.cat((a, b), 1)


def rows(a, b, last):
    return last(torch.cat((torch.cat((b, b), 2), torch.cat((b, b), 2)), 1))


def resized(a, b, last):
    return last(
        F.interpolate(torch.cat((a, F.interpolate(b[:, :, ::2], scale_factor=(2.0, 1.0))), 1), scale_factor=2.0)
    )


def upsampled(a, b, last):
    return last(torch.cat((F.interpolate(b, scale_factor=2.0), F.interpolate(a, (16, 14), mode="nearest-exact")), 1))


def pooled(a, b, last):
    return last(torch.cat((a, b, F.interpolate(F.max_pool2d(b, (2, 1)), (8, 7))), 1))


# Concatenations that stay, without the input's, and copies of parts.
CASES = {
    "dense": (lambda: Dense(lists=False), 0, 0),
    "dense, of lists": (lambda: Dense(lists=True), 0, 0),
    "plainly": (lambda: Beside(plainly), 0, 0),
    "read by torch": (lambda: Beside(read_by_torch), 0, 1),
    "twice": (lambda: Beside(twice, 38), 0, 1),
    "given back": (lambda: Beside(given_back), 1, 0),
    "rows": (lambda: Beside(rows, 64), 2, 0),
    "resized": (lambda: Beside(resized), 0, 1),
    "upsampled": (lambda: Beside(upsampled), 0, 0),
    "pooled": (lambda: Beside(pooled, 67), 0, 0),
}


@pytest.mark.parametrize("dtype", (f32, torch.bfloat16))
@pytest.mark.parametrize("case", CASES)
def test_parts_are_written_where_they_lie(case, dtype, monkeypatch):
    make, cats, copies = CASES[case]
    graphs, join = [], program.join
    monkeypatch.setattr(program, "join", lambda graph: graphs.append(graph) or join(graph))
    torch.manual_seed(0)
    model = make().eval().to(dtype, memory_format=torch.channels_last)
    x = torch.randn(2, 2, 8, 7).to(dtype).contiguous(memory_format=torch.channels_last)
    with torch.no_grad():
        plain = model(x)
        patched = tritonconv.patch(model)
        results = [patched(x) for _ in range(replay._FIRST + 3)]
        other = patched(2 * x)
        assert torch.equal(other, tritonconv.patch(model)(2 * x))
    torch.testing.assert_close(results[0], plain)
    assert all(torch.equal(result, results[0]) and result.stride() == plain.stride() for result in results)
    (graph,) = graphs
    found = Counter(node.target for node in graph.nodes)
    ours = 0 if case.startswith("dense") else 1  # that of the input
    assert found[torch.cat] == cats + ours
    assert found[torch.ops.aten.copy_.default] == copies


def recorded(function) -> list[tuple[engines.Launch, tuple]]:
    """The launches of a call, and their tensors."""
    launches, mine = [], threading.get_ident()
    engine.watchers[mine] = lambda kernel, launch, tensors: launches.append((launch, tensors))
    try:
        function()
    finally:
        del engine.watchers[mine]
    return launches


X, RESIDUAL = (integers((2, 32, 8, 8), f32, seed=i).contiguous(memory_format=torch.channels_last) for i in (0, 1))
STATISTICS = torch.zeros(32), torch.full((32,), 1 - 1e-5)
SAME = ConvGeometry(2, 32, 8, 8, 32, 3, 3, padding=((1, 1), (1, 1)))
CALLS = {
    "conv_fprop": lambda: functional.conv2d(X, integers((6, 16, 3, 2), f32), integers((6,), f32), 2, 1, groups=2),
    "conv_fprop, 1×1": lambda: functional.conv2d(X, integers((32, 32, 1, 1), f32), residual=RESIDUAL),
    "conv_winograd": lambda: winograd.bind_fprop(X, integers((32, 32, 3, 3), f32), None, SAME)(X, RESIDUAL),
    "avg_pool_backward_cells": lambda: pool.avg_pool_backward(X, PoolGeometry(2, 32, 16, 24, 2, 3, (2, 3)), 6),
    "max_pool": lambda: functional.max_pool2d(X, 3, 2, 1),
    "norm_apply": lambda: functional.batch_norm(X, *STATISTICS, residual=RESIDUAL, activation="relu"),
}


@pytest.mark.parametrize("engine_name", ("native", "interpreter"))
@pytest.mark.parametrize("call", CALLS)
def test_kernels_leave_out_other_channels(call, engine_name):
    kernel = call.partition(",")[0]
    (launch, tensors), *_ = [each for each in recorded(CALLS[call]) if each[0].kernel.__name__ == kernel]
    names = launch.kernel.arg_names
    written = next(name for name in ("y_ptr", "dx_ptr") if name in names)
    y = tensors[names.index(written)].clone()
    for name, constexpr in joining._PIXELS[kernel].items():
        at = names.index(name)
        N, C, H, W = tensors[at].shape
        assert launch.constexprs[constexpr] in (None, C)
        wide = torch.full((N, H, W, C + 5), 99.0)
        part = wide[..., 3 : 3 + C]
        part.copy_(tensors[at].permute(0, 2, 3, 1))
        given = [part if i == at else t for i, t in enumerate(tensors)]
        result = given[names.index(written)]
        result.fill_(77)
        apart = replace(launch, constexprs={**launch.constexprs, constexpr: C + 5})
        engines.ENGINES[engine_name].bind(apart)(*given)
        assert torch.equal(result.permute(0, 3, 1, 2) if name == written else result, y)
        assert (wide[..., :3] == 99).all()
        assert (wide[..., 3 + C :] == 99).all()
