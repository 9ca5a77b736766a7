"""Turns a trace and the blocks matched in it into a forward that runs the blocks."""

from itertools import accumulate

import torch.nn.functional as F
from torch import fx, nn

from . import blocks, functional, swap
from .blocks import ConvBlock
from .capture import Match
from .trace import Trace


def rewrite(module: nn.Module, trace: Trace, matches: list[Match]) -> swap.Forward:
    """The forward of `module`, with the blocks of `matches` in place of what they cover. Uses up the trace's graph.

    The result is a plain function that takes the module as `self` and looks its children up at every call. So it
    holds no weights, and a copy of the module runs on its own.
    """
    graph = trace.graph
    for match in matches:
        if match.in_caller:
            (_fuse_conv if isinstance(match.block, ConvBlock) else _retarget_pool)(graph, match)
    graph.lint()
    code = graph.python_code("self")
    namespace = dict(code.globals)
    exec(compile(code.src, f"<tritonconv {type(module).__name__}.forward>", "exec"), namespace)
    return swap.Forward(
        run=namespace["forward"],
        arity=len(graph.find_nodes(op="placeholder")),
        reads=trace.reads,
        children={path: swap.children(module.get_submodule(path)) for path in _holders(graph)},
    )


def _fuse_conv(graph: fx.Graph, match: Match) -> None:
    conv, activation = match.nodes
    block = match.block
    # Where the convolution was, not the activation: something in between may overwrite the input.
    with graph.inserting_before(conv):
        modules = [path and graph.get_attr(path) for path in (block.conv, block.activation_module)]
        fused = graph.call_function(blocks.conv2d_activation, (*modules, block.activation, *conv.all_input_nodes))
    activation.replace_all_uses_with(fused)
    graph.erase_node(activation)
    graph.erase_node(conv)


def _retarget_pool(graph: fx.Graph, match: Match) -> None:
    (call,) = match.nodes
    if call.target is F.max_pool2d_with_indices:
        call.kwargs = {**call.kwargs, "return_indices": True}
    call.target = functional.max_pool2d


def _holders(graph: fx.Graph) -> list[str]:
    """The modules through which the graph reaches others, outermost first: "", "a", "a.b" for a call of "a.b.c"."""
    paths = {""}
    for node in graph.nodes:
        if node.op in ("call_module", "get_attr"):
            paths.update(accumulate(node.target.split(".")[:-1], "{}.{}".format))
    return sorted(paths)
