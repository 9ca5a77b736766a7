"""Copies from one memory format to the other and back, left out.

Kernels convolve in channels_last memory. Where a model's tensors are in NCHW memory, so is what each block gives, as
torch's would be; the next block copies it back, and the two copies take longer than many a convolution. What only
copies, concatenations and sums touch may as well lie as the kernels want it. Then the copies are between tensors that
are alike, and who reads the one can read the other. All numbers stay the same bits.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import torch
from torch import fx

from .recorded import Storage, Touching, View, constant_of, lasts, launched, touching_of, views_of

_aten = torch.ops.aten
_COPY = _aten.copy_.default
# Of functions that write into `out` what is the same in any memory: what they read.
_INTO = {torch.cat, _aten.cat.out, torch.add, _aten.add.out}
_READ = {"x_ptr", "dy_ptr", "residual_ptr"}  # what no kernel writes to
_PURE = {torch.empty_strided, constant_of}


def leave_out_copies(graph: fx.Graph) -> None:
    """Rewrites the copies in a recorded graph, and what touches the memory between them."""
    touching = touching_of(graph)
    for storage in _movable(touching):
        _lay(storage, touching[storage])
    order = {node: at for at, node in enumerate(graph.nodes)}
    for node in list(graph.nodes):
        if node.target is _COPY and (pair := _alike(node, touching, order)) is not None:
            _leave_out(graph, node, *pair, touching)


def _movable(touching: Touching) -> Iterator[Storage]:
    """Storages in NCHW memory that may be in channels_last memory, and of whose neighbours at least as many are."""
    waiting = {
        storage: others
        for storage, nodes in touching.items()
        if storage.made and not any(map(lasts, nodes)) and (others := _neighbours(storage, nodes)) is not None
    }
    moved: set[Storage] = set()
    while ready := [storage for storage, others in waiting.items() if _is_drawn(others, moved)]:
        for storage in ready:
            del waiting[storage]
            moved.add(storage)
        yield from ready


def _neighbours(storage: Storage, nodes: dict[fx.Node, None]) -> list[View] | None:
    """The views that the storage is copied, concatenated or added from and to; None if its strides matter to more than
    these nodes, or it is not an image in NCHW memory."""
    found: list[View] = []
    for node in nodes:
        if any(view.storage is storage and not _is_planar(view) for view in _views_at(node)):
            return None
        if node.target is torch.empty_strided:
            continue
        if node.target is not _COPY and not (node.target in _INTO and isinstance(node.kwargs.get("out"), fx.Node)):
            return None
        found += [view for view in _views_at(node) if view.storage is not storage]
    return found


def _is_drawn(others: list[View], moved: set[Storage]) -> bool:
    last = sum(view.storage in moved or _is_channels_last(view) for view in others)
    return last > 0 and len(others) <= 2 * last


def _views_at(node: fx.Node) -> list[View]:
    """Of all that goes in and comes out, each once."""
    return list(dict.fromkeys(view for each in (node, *node.all_input_nodes) for view in views_of(each)))


def _is_planar(view: View) -> bool:
    """Whether it is all of its storage, an image in NCHW memory and nothing else."""
    whole = view.offset == 0 and view.shape.numel() * view.dtype.itemsize == view.storage.size
    return whole and len(view.shape) == 4 and view.stride == _strides(view.shape, torch.contiguous_format)


def _is_channels_last(view: View) -> bool:
    return len(view.shape) == 4 and view.stride == _strides(view.shape, torch.channels_last)


def _strides(shape: torch.Size, memory_format: torch.memory_format) -> tuple[int, ...]:
    return torch.empty(shape, device="meta", memory_format=memory_format).stride()


def _lay(storage: Storage, nodes: dict[fx.Node, None]) -> None:
    """Puts what is in a storage into channels_last memory."""
    for node in nodes:
        moved = [_laid(view) if view.storage is storage else view for view in views_of(node)]
        if moved != views_of(node):
            node.meta["views"] = moved
            if node.target is torch.empty_strided:
                node.args = node.args[0], moved[0].stride


def _laid(view: View) -> View:
    return replace(view, stride=_strides(view.shape, torch.channels_last))


def _alike(copy: fx.Node, touching: Touching, order: dict[fx.Node, int]) -> tuple[View, View] | None:
    """Where a copy is from and to, if these are alike and whoever reads the one can read the other."""
    slot, source = copy.args[:2]
    if slot.target is not torch.empty_strided or not isinstance(source, fx.Node) or len(views_of(source)) != 1:
        return None
    (new,), (old,) = views_of(slot), views_of(source)
    if replace(new, storage=old.storage) != replace(old, offset=0) or not (new.storage.made and old.storage.made):
        return None
    readers = [node for node in touching[new.storage] if node not in (slot, copy)]
    for node in readers:
        parts = [view for view in _views_at(node) if view.storage is new.storage and view != new]
        if parts or lasts(node) or order[node] < order[copy] or new.storage in _written(node):
            return None
    last = max(map(order.get, readers), default=-1)
    for node in touching[old.storage]:
        held = lasts(node) and node.op != "output"  # by somebody who may write there unseen
        if held or (order[copy] < order[node] <= last and old.storage in _written(node)):
            return None
    return old, new


def _leave_out(graph: fx.Graph, copy: fx.Node, old: View, new: View, touching: Touching) -> None:
    slot, source = copy.args[:2]
    for gone in (copy, slot):
        gone.replace_all_uses_with(source)
        touching[old.storage].pop(gone, None)
        graph.erase_node(gone)
    for node in touching.pop(new.storage):
        if node in (copy, slot):
            continue
        node.meta["views"] = [old if view == new else view for view in views_of(node)]
        if (made := node.meta.get("launch")) is not None:
            operands = tuple(old if each == new else each for each in made.operands)
            node.meta["launch"] = replace(made, operands=operands)
        touching[old.storage][node] = None


def _written(node: fx.Node) -> set[Storage]:
    """What a node may write to."""
    if node.op in ("placeholder", "get_attr", "output") or node.target in _PURE:
        return set()
    if node.target is launched:
        named = node.meta["launch"].named
        return {each.storage for name, each in named.items() if name not in _READ and isinstance(each, View)}
    if node.target in _INTO:
        return {view.storage for view in views_of(node)}
    if isinstance(node.target, torch._ops.OpOverload):
        if not node.target._schema.is_mutable:
            return set()
        if node.target is _COPY:
            return {view.storage for view in views_of(node.args[0])}
    return {view.storage for view in _views_at(node)}
