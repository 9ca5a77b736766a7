"""Which modules have an interior: all that happens in them is known, and gives the same in any memory format.

So is it in a module whose forwards could be traced, where every call that is given an image is in the tables here, and
in a Sequential of such modules. What a table lacks may ask for strides: then the module has no interior, and its
convolutions give what torch's would.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn
from torch.nn import Parameter
from torch.nn.modules.module import _has_any_global_hook
from torch.utils._pytree import tree_leaves

from ..blocks.modules import ACTIVATION_MODULES, LEAVES
from ..blocks.repeat import hooks_of
from ..capture.nodes import ACTIVATION_CALLS, CONV_CALLS, POOL_CALLS
from ..capture.sites import Capture
from ..capture.trace import unpacked
from ..launch.common import is_channels_last
from ..ops.interior import is_inside
from ..ops.support import unsupported_now

# Modules that give the same, whatever strides they are given. Dropout draws its numbers in the order of memory.
_MODULES = {
    *(LEAVES.keys() - {nn.Dropout}),
    *ACTIVATION_MODULES,
    *(nn.BatchNorm1d, nn.BatchNorm2d, nn.LayerNorm, nn.LocalResponseNorm),
    *(nn.Softmax, nn.Softmax2d, nn.LogSoftmax, nn.Softplus, nn.Mish, nn.Hardtanh),
    *(nn.Identity, nn.Flatten, nn.Dropout2d),
    *(nn.Upsample, nn.UpsamplingNearest2d, nn.UpsamplingBilinear2d, nn.PixelShuffle, nn.PixelUnshuffle),
    *(nn.ZeroPad2d, nn.ConstantPad2d, nn.ReflectionPad2d, nn.ReplicationPad2d),
}
# Functions and methods of which the same holds.
_RESHAPES = {torch.flatten, torch.reshape, "flatten", "view", "reshape"}
# What gives a part of an image, or one turned: views, whose strides are seen where they are handed out.
_PARTS = {
    *(operator.getitem, unpacked, torch.permute, torch.transpose, torch.squeeze, torch.unsqueeze, torch.chunk),
    *(torch.split, "permute", "transpose", "squeeze", "unsqueeze", "expand", "expand_as", "chunk", "split", "unbind"),
}
_CALLS = _RESHAPES | _PARTS | {
    *ACTIVATION_CALLS,
    *POOL_CALLS,
    *CONV_CALLS,
    *(getattr, operator.add, operator.sub, operator.mul, operator.truediv, operator.floordiv, operator.mod),
    *(operator.neg, operator.pow, operator.iadd, operator.isub, operator.imul, operator.itruediv),
    *(torch.add, torch.sub, torch.mul, torch.div, torch.cat, torch.concat, torch.stack, torch.clamp, torch.softmax),
    *(torch.mean, torch.sum, torch.amax, torch.maximum, torch.minimum, torch.sqrt, torch.rsqrt, torch.pow, torch.exp),
    *(F.interpolate, F.pad, F.softmax, F.log_softmax, F.softplus, F.mish, F.hardtanh, F.normalize, F.pixel_shuffle),
    *(F.batch_norm, F.group_norm, F.instance_norm, F.layer_norm, F.conv_transpose2d),
    *("add", "sub", "mul", "div", "neg", "pow", "sqrt", "rsqrt", "exp", "clamp", "softmax", "mean", "sum", "amax"),
    *("add_", "sub_", "mul_", "div_", "clamp_", "size", "dim", "contiguous", "clone", "float", "type_as"),
}
_IN_PLACE = {operator.iadd, operator.isub, operator.imul, operator.itruediv, torch.relu_, torch.sigmoid_, torch.tanh_}

_CONVOLUTIONS = nn.Conv2d, nn.ConvTranspose2d

Forwards = Mapping[nn.Module, Sequence[fx.Graph]]  # of modules, all that there are


def having_one(model: nn.Module, found: Capture) -> list[nn.Module]:
    """The outermost modules of `model` that have an interior, of those in which something is convolved."""
    forwards = {module: [trace.graph for trace, _ in traced] for module, traced in found.forwards.items()}
    known: dict[nn.Module, bool] = {}

    def has(module: nn.Module) -> bool:
        if module not in known:
            known[module] = _has_interior(module, forwards, has)
        return known[module]

    def outermost(module: nn.Module) -> list[nn.Module]:
        if (module in forwards or _class(module) is nn.Sequential) and has(module):
            return [module] if any(isinstance(each, _CONVOLUTIONS) for each in module.modules()) else []
        return [each for child in module.children() for each in outermost(child)]

    return list(dict.fromkeys(outermost(model)))


def _has_interior(module: nn.Module, forwards: Forwards, has: Callable[[nn.Module], bool]) -> bool:
    if "forward" in vars(module):
        return False
    if module in forwards:
        return all(_is_known(module, graph, has) for graph in forwards[module])
    if _class(module) is nn.Sequential:
        return _is_known_sequence(list(module.children()), has)
    return _class(module) in _MODULES


def _class(module: nn.Module) -> type:
    return vars(type(module)).get("_original", type(module))


def _is_known_sequence(children: list[nn.Module], has: Callable[[nn.Module], bool]) -> bool:
    """As far as they are given images."""
    kinds = list(map(_class, children))
    last = kinds.index(nn.Flatten) if nn.Flatten in kinds else len(children)
    return all(map(has, children[:last]))


def _is_known(module: nn.Module, graph: fx.Graph, has: Callable[[nn.Module], bool]) -> bool:
    """Whether it gives the same in any memory format."""
    images = set(graph.find_nodes(op="placeholder"))  # and what may be made of them
    reshaped: set[fx.Node] = set()  # images in other shapes, views of them in the one format and copies in the other
    for node in graph.nodes:
        child = module.get_submodule(node.target) if node.op == "call_module" else None
        if _works_in_place(node, child) and any(
            value in reshaped or not reshaped.isdisjoint(value.users) for value in node.all_input_nodes
        ):
            return False
        if node.op == "output":
            return not any(value in images and value.target in _PARTS for value in node.all_input_nodes)
        if node.op == "get_attr" or images.isdisjoint(node.all_input_nodes):
            continue
        if child is None and (node.target not in _CALLS or "memory_format" in node.kwargs):
            return False
        if child is not None and not has(child):
            return False
        if node.target in _RESHAPES or (child is not None and _class(child) is nn.Flatten):
            reshaped.add(node)
        else:
            images.add(node)
    raise AssertionError("a graph ends with its output")


def opens(module: nn.Module, values: tuple) -> bool:
    """Whether a call of a module that has an interior, given these values, may run in it: all is in NCHW memory, and
    nobody looks in."""
    if is_inside() or torch.compiler.is_compiling() or unsupported_now() is not None or _has_any_global_hook():
        return False
    images = [x for x in tree_leaves(values) if isinstance(x, Tensor) and x.dim() == 4]
    if not images or any(type(x) not in (Tensor, Parameter) or is_channels_last(x) for x in images):
        return False
    for each in module.modules():
        weight = each._parameters.get("weight")
        if weight is not None and weight.dim() == 4 and is_channels_last(weight):
            return False
        if each is not module and any(hooks_of(each)):
            return False
    return True


def _works_in_place(node: fx.Node, child: nn.Module | None) -> bool:
    if child is not None:
        return getattr(child, "inplace", False)
    named = node.op == "call_method" and node.target.endswith("_")
    return named or node.target in _IN_PLACE or node.kwargs.get("inplace", False)
