"""Concatenation without copies: parts are written where they lie in the whole.

A part that nothing but concatenations and launches touch, these of kernels that can skip other channels, becomes a view
of the whole. So a DenseNet's block is one piece of memory, of which every layer reads what is there and writes what
comes next to it. What is left of the parts is copied there.
"""

from __future__ import annotations

import math
from collections import defaultdict
from dataclasses import replace
from itertools import accumulate, pairwise

import torch
from torch import fx

from ..cpu import engine
from .recorded import Launched, Storage, View, views_of

_aten = torch.ops.aten
# Which constexpr says how far apart the pixels of which tensor are.
_PIXELS = {
    "conv_fprop": {"x_ptr": "PIXEL", "y_ptr": "PIXEL_Y"},
    "conv_winograd": {"y_ptr": "PIXEL_Y"},
    "expand_depthwise": {"x_ptr": "PIXEL"},
    "norm_apply": {"x_ptr": "PIXEL"},
    "max_pool": {"x_ptr": "PIXEL"},
    "avg_pool_backward_cells": {"dx_ptr": "PIXEL"},
}


def join(graph: fx.Graph) -> None:
    """Rewrites the concatenations of a recorded graph, and the launches that write or read what is moved."""
    touching: dict[Storage, dict[fx.Node, None]] = defaultdict(dict)
    lasting: set[Storage] = set()
    for node in graph.nodes:
        for view in (view for each in (node, *node.all_input_nodes) for view in views_of(each)):
            touching[view.storage][node] = None
            if node.meta.get("lasting"):
                lasting.add(view.storage)
    movable = {
        storage: list(nodes)
        for storage, nodes in touching.items()
        if storage.made and storage not in lasting and all(_finds(node, storage) for node in nodes)
    }
    moved: set[fx.Node] = set()
    for node in reversed(
        list(graph.nodes)
    ):  # so a whole that is part of another is in its place before its own parts are
        if _concatenates(node) and views_of(node)[0].storage not in lasting:
            moved |= _joined(graph, node, movable)
    launches = [node for node in moved if "launch" in node.meta]
    made = [node.meta["launch"] for node in launches]
    kernels = engine.load_launches([(each.launch, each.dtypes) for each in made])
    for node, each, kernel in zip(launches, made, kernels, strict=True):
        node.meta["launch"] = replace(each, kernel=kernel)


def _joined(graph: fx.Graph, node: fx.Node, movable: dict[Storage, list[fx.Node]]) -> set[fx.Node]:
    """Moves the parts of a concatenation into the whole, or the whole to where they lie side by side already, and takes
    the node out of the graph. Returns the nodes that find something elsewhere."""
    (whole,), parts = views_of(node), [views_of(part)[0] for part in node.args[0]]
    node.replace_all_uses_with(node.kwargs["out"])
    if _side_by_side(parts) and whole.storage in movable and _is_all(whole):
        graph.erase_node(node)
        movable[whole.storage].remove(node)
        return _move(movable.pop(whole.storage), whole, replace(parts[0], shape=whole.shape))
    begins = accumulate((view.shape[1] * view.dtype.itemsize for view in parts), initial=whole.offset)
    places = [replace(whole, offset=begin, shape=view.shape) for view, begin in zip(parts, begins, strict=False)]
    fit = {view.storage for view in parts if view.storage in movable and _is_all(view)} - {whole.storage}
    if 2 * len(fit) < len(parts):
        return set()
    moved: set[fx.Node] = set()
    with graph.inserting_before(node):
        for part, place in zip(node.args[0], places, strict=True):
            (view,) = views_of(part)
            if view.storage in fit:
                fit.remove(view.storage)  # one that comes twice is copied to its second place
                moved |= _move(movable.pop(view.storage), view, place)
            else:
                slot = graph.call_function(torch.empty_strided, (place.shape, place.stride), {"dtype": place.dtype})
                copy = graph.call_function(_aten.copy_.default, (slot, part))
                slot.meta["views"] = copy.meta["views"] = [place]
    graph.erase_node(node)
    return moved - {node}


def _move(nodes: list[fx.Node], old: View, new: View) -> set[fx.Node]:
    for node in nodes:
        node.meta["views"] = [new if view == old else view for view in views_of(node)]
        launched: Launched | None = node.meta.get("launch")
        if launched is None:
            continue
        pixels = {_constexpr(launched, at): _pixel(new) for at, each in enumerate(launched.operands) if each == old}
        launch = replace(launched.launch, constexprs={**launched.launch.constexprs, **pixels})
        operands = tuple(new if each == old else each for each in launched.operands)
        node.meta["launch"] = replace(launched, launch=launch, operands=operands)
    return set(nodes)


def _writes_a_whole(node: fx.Node) -> bool:
    given = node.target in (torch.cat, _aten.cat.out) and isinstance(node.args[0], (list, tuple))
    return given and isinstance(node.kwargs.get("out"), fx.Node)


def _concatenates(node: fx.Node) -> bool:
    """Whether it writes images into one, whose channels lie side by side."""
    if not _writes_a_whole(node):
        return False
    parts, *rest = node.args
    dim = rest[0] if rest else node.kwargs.get("dim", 0)
    (whole,), views = views_of(node), [views_of(part)[0] for part in parts]
    alike = all(view.dtype == whole.dtype and view.shape[2:] == whole.shape[2:] for view in views)
    return whole.storage.made and len(whole.shape) == 4 and dim in (1, -3) and alike and _pixel(whole) is not None


def _side_by_side(views: list[View]) -> bool:
    """Whether these are one image's channels."""
    return all(
        after.storage is before.storage
        and after.stride == before.stride
        and after.offset == before.offset + before.shape[1] * before.dtype.itemsize
        for before, after in pairwise(views)
    )


def _pixel(view: View) -> int | None:
    """How many elements apart its pixels are, in memory as NHWC is, or None in other memory."""
    N, C, H, W = view.shape
    pixel = view.stride[3]
    return pixel if view.stride == (H * W * pixel, 1, W * pixel, pixel) and pixel >= C else None


def _finds(node: fx.Node, storage: Storage) -> bool:
    """Whether the node could find this memory, one image, as channels of another."""
    if not all(_is_all(view) for view in views_of(node) if view.storage is storage):
        return False
    launched: Launched | None = node.meta.get("launch")
    if launched is None:
        return node.target is torch.empty_strided or _writes_a_whole(node)
    return all(
        _constexpr(launched, at) is not None
        for at, operand in enumerate(launched.operands)
        if isinstance(operand, View) and operand.storage is storage
    )


def _is_all(view: View) -> bool:
    """Whether it is all of its memory, [N, C, H, W] as NHWC."""
    whole = view.offset == 0 and math.prod(view.shape) * view.dtype.itemsize == view.storage.size
    return whole and len(view.shape) == 4 and _pixel(view) == view.shape[1]


def _constexpr(launched: Launched, at: int) -> str | None:
    """The name of what tells a kernel how far apart the pixels of an operand are, if it is their channels now."""
    launch, operand = launched.launch, launched.operands[at]
    name = _PIXELS.get(launch.kernel.__name__, {}).get(list(launched.named)[at])
    if launch.constexprs.get("SPLIT", 1) > 1 or launch.constexprs.get("PLANAR"):
        return None
    return name if name and launch.constexprs[name] in (None, operand.shape[1]) else None
