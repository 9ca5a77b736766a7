"""Operators with each of their tiles, on integers whose sums are exact."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

from .. import launch
from ..configs import TileConfig
from ..geometry import AdaptiveGeometry, ConvGeometry, GroupGeometry, NormGeometry, PoolGeometry, RowGeometry
from ..launch.norm import Norm
from .common import integers

Run = Callable[[Mapping], Callable[[], object]]
Exact = Callable[[], tuple[Tensor, ...]]


def convolution(
    op: str, g: ConvGeometry, dtype: torch.dtype, device: torch.device, made=launch.conv
) -> tuple[Run, Exact]:
    """`made`: what launches the algorithm."""
    kind = op.rpartition("_")[2]
    x = integers(device, g.N, g.C, g.H, g.W)
    weight = integers(device, g.K, g.Cg, g.R, g.S)
    dy = integers(device, g.N, g.K, g.P, g.Q)
    ((top, bottom), (left, right)), (up, across) = g.padding, g.up

    def exact() -> tuple[Tensor, ...]:
        with torch.enable_grad():
            inputs = x.clone().requires_grad_(), weight.clone().requires_grad_()
            apart = inputs[0].new_zeros(g.N, g.C, (g.H - 1) * up + 1, (g.W - 1) * across + 1)
            apart[:, :, ::up, ::across] = inputs[0]
            padded = F.pad(apart, (left, right, top, bottom))
            y = F.conv2d(padded, inputs[1], None, g.stride, 0, g.dilation, g.groups)
            wanted = {"dgrad": inputs[0], "wgrad": inputs[1]}.get(kind)
            return (y.detach() if wanted is None else torch.autograd.grad(y, wanted, dy)[0],)

    layout = torch.contiguous_format if isinstance(g, RowGeometry) else torch.channels_last
    a, w, b = (t.to(dtype, memory_format=layout) for t in (x, weight, dy))
    run = {
        "fprop": lambda config: lambda: made.bind_fprop(a, w, None, g, config=config)(a, None),
        "dgrad": lambda config: lambda: made.dgrad(b, w, None, g, config=config),
        "wgrad": lambda config: lambda: made.wgrad(b, a, g, layout, config),
    }[kind]
    return lambda config: run(config and TileConfig(**config)), exact


def _winograd(op: str, g: ConvGeometry, dtype: torch.dtype, device: torch.device) -> tuple[Run, Exact]:
    return convolution("fprop", g, dtype, device, launch.winograd)


def _conv1d_winograd(op: str, g: RowGeometry, dtype: torch.dtype, device: torch.device) -> tuple[Run, Exact]:
    return convolution("conv1d_fprop", g, dtype, device, launch.conv1d_winograd)


def _winograd_wgrad(op: str, g: ConvGeometry, dtype: torch.dtype, device: torch.device) -> tuple[Run, Exact]:
    return convolution("wgrad", g, dtype, device, launch.winograd_wgrad)


def _linear(op: str, g: ConvGeometry, dtype: torch.dtype, device: torch.device) -> tuple[Run, Exact]:
    x, weight, dy = (integers(device, *shape) for shape in ((g.N, g.C), (g.K, g.C), (g.N, g.K)))
    a, w, b = (t.to(dtype)[..., None, None] for t in (x, weight, dy))
    made, layout = launch.linear, torch.contiguous_format
    run = {
        "linear": lambda config: made.linear(a.flatten(1), w.flatten(1), None, None, config),
        "linear_fprop": lambda config: made.bind_fprop(a, w, None, g, config=config)(a),
        "linear_dgrad": lambda config: made.dgrad(b, w, g, config),
        "linear_wgrad": lambda config: made.wgrad(b, a, g, layout, config),
    }[op]
    exact = {"linear_dgrad": lambda: dy @ weight, "linear_wgrad": lambda: dy.t() @ x}.get(op, lambda: x @ weight.t())
    return lambda config: lambda: run(TileConfig(**config)).flatten(1), lambda: (exact(),)


def _pool(op: str, g: PoolGeometry | AdaptiveGeometry, dtype: torch.dtype, device: torch.device) -> tuple[Run, Exact]:
    x = integers(device, g.N, g.C, g.H, g.W)
    dy = integers(device, g.N, g.C, g.P, g.Q)
    a, b = (t.to(dtype, memory_format=torch.channels_last) for t in (x, dy))
    if isinstance(g, AdaptiveGeometry):
        largest = functools.partial(F.adaptive_max_pool2d, output_size=(g.P, g.Q), return_indices=True)
        mean = functools.partial(F.adaptive_avg_pool2d, output_size=(g.P, g.Q))
    else:
        window = {"kernel_size": (g.R, g.S), "stride": g.stride, "padding": g.padding, "ceil_mode": g.ceil_mode}
        largest = functools.partial(F.max_pool2d, **window, dilation=g.dilation, return_indices=True)
        mean = functools.partial(F.avg_pool2d, **window)
    by_max = op.startswith("max")

    def exact() -> tuple[Tensor, ...]:
        with torch.enable_grad():
            inputs = x.clone().requires_grad_()
            outputs = largest(inputs) if by_max else (mean(inputs),)
            return torch.autograd.grad(outputs[0], inputs, dy) if op.endswith("backward") else outputs

    made, divisor = launch.pool, g.divisor(count_include_pad=True)
    indices = largest(x)[1].to(torch.int32, memory_format=torch.channels_last) if by_max else None
    run = {
        "max_pool": lambda config: lambda: made.max_pool(a, g, torch.int32, config),
        "max_pool_backward": lambda config: lambda: made.max_pool_backward(b, indices, g, config),
        "avg_pool": lambda config: lambda: made.avg_pool(a, g, divisor, config=config),
        "global_avg_pool": lambda config: lambda: made.avg_pool(a, g, divisor, config=config),
        "avg_pool_backward": lambda config: lambda: made.avg_pool_backward(b, g, divisor, config),
    }[op]
    return lambda config: run(TileConfig(**config)), exact


def _max_unpool(op: str, g: AdaptiveGeometry, dtype: torch.dtype, device: torch.device) -> tuple[Run, Exact]:
    image = integers(device, g.N, g.C, g.H, g.W)
    x, indices = F.adaptive_max_pool2d(image, (g.P, g.Q), return_indices=True)
    a, at = (t.to(memory_format=torch.channels_last) for t in (x.to(dtype), indices))

    def exact() -> tuple[Tensor, ...]:
        return (torch.zeros_like(image).flatten(2).scatter(2, indices.flatten(2), x.flatten(2)).view_as(image),)

    return lambda config: lambda: launch.pool.max_unpool(a, at, g, TileConfig(**config)), exact


def _norm(op: str, g: NormGeometry, dtype: torch.dtype, device: torch.device) -> tuple[Run, Exact]:
    """With ReLU, by given statistics whose standard deviation is 2; and PReLU."""
    if isinstance(g, GroupGeometry):
        return _group_norm(op, g, dtype, device)
    shape = (g.N, g.C, 1, g.M) if g.planar else (g.M, g.C, 1, 1)
    x, dy = (integers(device, *shape, seed=seed) for seed in (0, 1))
    mean, weight, bias = (integers(device, g.C, seed=seed) for seed in (0, 1, 2))
    axes, pixels = (0, 2, 3), g.N * g.M

    def channels(vector: Tensor) -> Tensor:
        return vector[:, None, None]

    normal = (x - channels(mean)) / 2
    y = (normal * channels(weight) + channels(bias)).relu()
    da = torch.where(y > 0, dy, 0)
    sums = torch.stack((da.sum(axes), (da * normal).sum(axes)))
    a, b, c = (t.to(dtype) for t in (x, dy, y))
    given = Norm(*(t.to(dtype) for t in (mean, torch.full_like(mean, 3), weight, bias)), eps=1.0)
    total = sums.to(torch.float64 if dtype is torch.float64 else torch.float32)
    made, slope = launch.norm, given.weight

    def dx() -> Tensor:
        return channels(weight) / 2 * (da - channels(sums[0]) / pixels - normal * channels(sums[1]) / pixels)

    def by_slope() -> tuple[Tensor, ...]:
        return torch.where(x > 0, dy, dy * channels(weight)), torch.where(x > 0, 0, dy * x).sum(axes)

    run, exact = {
        "norm_moments": (
            lambda config: made.finalize(made.moments(a, config), pixels),
            lambda: (x.mean(axes), x.var(axes, correction=0)),
        ),
        **_passes(a, b, c, given, total, y, sums, dx),
        "prelu_backward": (lambda config: made.prelu_backward(b, a, slope, "prelu", True, config), by_slope),
    }[op]
    return lambda config: lambda: run(TileConfig(**config)), exact


def _passes(x, dy, y, norm: Norm, total, exact_y: Tensor, sums: Tensor, dx: Callable[[], Tensor]) -> dict:
    """Of a norm with ReLU behind it, by op: what runs it, and what is exact. `total`: what its gradient is given."""
    made = launch.norm
    return {
        "norm_apply": (lambda config: made.apply(x, norm, None, "relu", config), lambda: (exact_y,)),
        "norm_backward_sums": (
            lambda config: made.backward_sums(dy, y, x, norm, None, "relu", config),
            lambda: (sums,),
        ),
        "norm_backward": (
            lambda config: made.backward(dy, y, x, norm, None, "relu", False, total, config)[0],
            lambda: (dx(),),
        ),
    }


def _group_norm(op: str, g: GroupGeometry, dtype: torch.dtype, device: torch.device) -> tuple[Run, Exact]:
    """As above, of each image by itself."""
    x, dy = (integers(device, g.N, g.C, 1, g.M, seed=seed) for seed in (0, 1))
    weight, bias = (integers(device, g.C, seed=seed)[:, None, None] for seed in (1, 2))
    mean = integers(device, g.N, g.groups, 1).expand(g.N, g.groups, g.group)
    normal = (x - mean.reshape(g.N, g.C, 1, 1)) / 2
    y = (normal * weight + bias).relu()
    da = torch.where(y > 0, dy, 0)
    sums = torch.stack((da, da * normal), 1).sum((3, 4))
    grouped = (sums * weight.flatten()).view(g.N, 2, g.groups, g.group).mean(3, keepdim=True) / g.M
    means = grouped.expand(g.N, 2, g.groups, g.group).reshape(g.N, 2, g.C, 1, 1).transpose(0, 1)
    layout = torch.contiguous_format if g.planar else torch.channels_last
    a, b, c = (t.to(dtype, memory_format=layout) for t in (x, dy, y))
    vectors = (t.to(dtype).contiguous() for t in (mean, torch.full_like(mean, 3), weight.flatten(), bias.flatten()))
    given, made = Norm(*vectors, eps=1.0), launch.norm
    total = means.to(torch.float64 if dtype is torch.float64 else torch.float32).contiguous()
    values = x.view(g.N, g.groups, -1)

    def statistics() -> tuple[Tensor, ...]:
        found = values.mean(2, keepdim=True), values.var(2, correction=0, keepdim=True)
        return tuple(t.expand(g.N, g.groups, g.group) for t in found)

    run, exact = {
        "norm_moments": (
            lambda config: launch.group_norm.finalize(made.moments(a, config, g.groups), g.N, g.groups),
            statistics,
        ),
        **_passes(a, b, c, given, total, y, sums, lambda: (da * weight - means[0] - normal * means[1]) / 2),
    }[op]
    return lambda config: lambda: run(TileConfig(**config)), exact


def _finish(op: str, g: NormGeometry, dtype: torch.dtype, device: torch.device) -> tuple[Run, Exact]:
    """Of four splits."""
    partial = integers(device, 4, g.M, g.C)
    parts = partial.to(torch.float64 if dtype is torch.float64 else torch.float32)

    def run(config: Mapping) -> Callable[[], Tensor]:
        problem = g, dtype, len(parts), None, 0.0, TileConfig(**config)
        _, finish = launch.common.prepare(device, launch.split.finish_launch, *problem)

        def call() -> Tensor:
            y = torch.empty((g.M, g.C), dtype=dtype, device=device)
            finish(parts, None, y, *(None,) * 7)
            return y

        return call

    return run, lambda: (partial.sum(0),)


# What makes the runs, and the truth, of an operator's (op, geometry, dtype, device).
OPERATORS = {
    **{
        f"{prefix}{op}": convolution
        for prefix in ("", "depthwise_", "conv1d_")
        for op in ("fprop", "dgrad", "wgrad")
    },
    "winograd": _winograd,
    "winograd_wgrad": _winograd_wgrad,
    "conv1d_winograd": _conv1d_winograd,
    **dict.fromkeys(("linear", "linear_fprop", "linear_dgrad", "linear_wgrad"), _linear),
    **dict.fromkeys(("max_pool", "max_pool_backward", "avg_pool", "avg_pool_backward", "global_avg_pool"), _pool),
    "max_unpool": _max_unpool,
    **dict.fromkeys(("norm_moments", "norm_apply", "norm_backward_sums", "norm_backward", "prelu_backward"), _norm),
    "conv_finish": _finish,
}
