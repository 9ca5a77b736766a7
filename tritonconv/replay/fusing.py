"""Two launches as one: a convolution, and what alone reads what it gives: a depthwise convolution or average pooling.

Nobody else can see what lies between, which in an inverted residual is the largest tensor there is.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor, fx

from ..configs import TileConfig
from ..configs.conv_pool import averaged
from ..configs.expansion import band
from ..cpu import engine
from ..engines import Launch
from ..geometry import ConvGeometry
from ..kernels.common import pointwise
from ..launch import packing
from ..launch.conv_pool import avg_launch
from ..launch.expansion import Epilogue, expansion_launch, workspace
from .recorded import Launched, Room, View
from .tape import Tape

# What a kernel is given for the tensors of conv_fprop and of depthwise_fprop, but x, panels and y.
_VECTORS = "bias_ptr", "mean_ptr", "var_ptr", "gamma_ptr", "beta_ptr", "slope_ptr"


def fuse(tape: Tape) -> None:
    """Rewrites the pairs of launches in a recorded graph for which that is predicted to be faster."""
    pairs = [(node, after) for node in tape.graph.nodes if (after := _only_reader(node)) is not None]
    made = [(*pair, _MAKERS[_kernel(pair[1])](*(node.meta["launch"] for node in pair))) for pair in pairs]
    made = [each for each in made if each[-1] is not None]
    kernels = engine.load_launches([(launched.launch, launched.dtypes) for *_, launched in made])
    for (node, after, launched), kernel in zip(made, kernels, strict=True):
        tape.constants += [operand for operand in launched.operands if isinstance(operand, Tensor)]
        between = node.meta["launch"].named["y_ptr"].storage.base
        after.args = tuple(dict.fromkeys(each for each in (*node.args, *after.args) if each is not between))
        after.meta["launch"] = replace(launched, kernel=kernel)
        after.meta["views"] = [operand for operand in launched.operands if isinstance(operand, View)]
        tape.graph.erase_node(node)
        tape.graph.erase_node(between)


def _only_reader(node: fx.Node) -> fx.Node | None:
    """The launch that follows that of a convolution and may become one with it, if nothing else touches what the one
    gives and the other takes."""
    if _kernel(node) != "conv_fprop":
        return None
    between, after = node.meta["launch"].named["y_ptr"], node.next
    while after.op == "get_attr" or after.target is torch.empty_strided:  # which do nothing
        after = after.next
    if _kernel(after) not in _MAKERS or after.meta["launch"].named["x_ptr"] != between:
        return None
    allocation = between.storage.base
    private = between.storage.made and set(allocation.users) == {node, after}
    return after if private and not any(n.meta.get("lasting") for n in (allocation, node, after)) else None


def _kernel(node: fx.Node) -> str | None:
    launched: Launched | None = node.meta.get("launch")
    return launched and launched.launch.kernel.__name__


def _expanded(expansion: Launched, depthwise: Launched) -> Launched | None:
    """Both in one, its kernel yet to be loaded; None where that cannot be, or is not worth it."""
    a, b, threads = expansion.launch.constexprs, depthwise.launch.constexprs, torch.get_num_threads()
    given, window = expansion.named, depthwise.named
    plain = pointwise(a["R"], a["S"], a["STRIDE_H"], a["STRIDE_W"], a["PAD_H"], a["PAD_W"])
    whole = a["GROUPS"] == a["SPLIT"] == 1 and a["PIXEL"] >= a["C"] and a["PIXEL_Y"] == b["C"] == b["K"]
    if not plain or not whole or {"residual_ptr", "moments_ptr"} & {*given, *window}:
        return None
    geometry, dtype = _geometry(depthwise.launch, b["C"], b["K"], b["C"]), given["x_ptr"].dtype
    config = band(a["C"], geometry, dtype, threads)
    if config is None:
        return None
    panels = [packing.in_tiles(tensors["w_ptr"], config.BN) for tensors in (given, window)]
    if None in panels:
        return None
    epilogues = [Epilogue(constexprs["EPS"], constexprs["ACTIVATION"]) for constexprs in (a, b)]
    launch = expansion_launch(a["C"], geometry, a["PRECISION"], *epilogues, a["PIXEL"], threads, config)
    operands = {
        "x_ptr": given["x_ptr"],
        "u_ptr": panels[0],
        "w_ptr": panels[1],
        "y_ptr": window["y_ptr"],
        "workspace_ptr": Room(workspace(launch) * dtype.itemsize),
        **{f"inner_{name}": given[name] for name in _VECTORS if name in given},
        **{name: window[name] for name in _VECTORS if name in window},
    }
    dtypes = {name: dtype if isinstance(each, Room) else each.dtype for name, each in operands.items()}
    return _launched(launch, operands, dtypes)


def _averaged(conv: Launched, pool: Launched) -> Launched | None:
    """A convolution whose outputs are averaged before they are stored; None as above."""
    a, b, given = conv.launch.constexprs, pool.launch.constexprs, conv.named
    window, dtype, groups = (b["R"], b["S"]), given["x_ptr"].dtype, a["GROUPS"]
    beside = window == (b["STRIDE_H"], b["STRIDE_W"]) and (b["DIL_H"], b["DIL_W"]) == (1, 1) and b["WHOLE"]
    mean = b["NORM"] == 1 and b["DIVISOR"] == b["R"] * b["S"]
    whole = a["SPLIT"] == 1 and a["PIXEL_Y"] == groups * a["K"]
    if not (beside and mean and whole) or {"residual_ptr", "moments_ptr"} & {*given}:
        return None
    firsts = _geometry(conv.launch, groups * a["C"], groups * a["K"], groups).firsts(window)
    config = averaged(firsts, TileConfig(a["BM"], a["BN"], a["BK"]), dtype, torch.get_num_threads())
    if config is None:
        return None
    launch = avg_launch(firsts, window, a["PRECISION"], a["ACTIVATION"], config, a["EPS"], a["PIXEL"])
    operands = given | {"y_ptr": pool.named["y_ptr"]}
    return _launched(launch, operands, {name: each.dtype for name, each in operands.items()})


# By the kernel of the second launch: both in one.
_MAKERS = {"depthwise_fprop": _expanded, "avg_pool": _averaged}


def _launched(launch: Launch, operands: dict[str, View | Tensor | Room], dtypes: dict[str, torch.dtype]) -> Launched:
    """Of a kernel that is yet to be loaded; operands and dtypes by the names of its parameters."""
    names = [name for name in launch.kernel.arg_names if name.endswith("_ptr")]
    given = tuple(operands[name] for name in names if name in operands)
    return Launched(None, launch, tuple(map(dtypes.get, names)), given)


def _geometry(launch: Launch, C: int, K: int, groups: int) -> ConvGeometry:
    """That of a convolution; padding at the end as far as windows reach."""
    c, (N, H, W, P, Q) = launch.constexprs, launch.sizes
    steps, dilation = (c["STRIDE_H"], c["STRIDE_W"]), (c["DIL_H"], c["DIL_W"])
    padding = tuple(
        (before, (outputs - 1) * step + (taps - 1) * apart + 1 - pixels - before)
        for before, outputs, step, taps, apart, pixels in zip(
            (c["PAD_H"], c["PAD_W"]), (P, Q), steps, (c["R"], c["S"]), dilation, (H, W), strict=True
        )
    )
    return ConvGeometry(N, C, H, W, K, c["R"], c["S"], steps, padding, dilation, groups)
