"""Turns a trace and the blocks matched in it into a forward that runs the blocks."""

from itertools import accumulate

import torch
from torch import fx, nn

from .. import choice
from ..blocks.block import ActivatedBlock, AveragedBlock, CallBlock, ConvBlock, DropoutBlock, PoolBlock
from ..blocks.calls import widened
from ..blocks.run import activated_block, activated_norm, averaged_convolution, conv_block, conv_call
from ..capture.match import Match
from ..capture.nodes import PADDING, WITH_INDICES, constants_of, padding_argument
from ..capture.trace import Trace
from ..geometry import Pair
from ..ops.dropout import dropout
from ..ops.interior import viewed
from ..ops.support import pair
from . import swap


def rewrite(module: nn.Module, trace: Trace, matches: list[Match]) -> swap.Forward:
    """The forward of `module`, with the blocks of `matches` in place of what they cover. Uses up the trace's graph.

    The result looks the module's children up at every call. So it holds no weights, and a copy of the module runs on
    its own.
    """
    graph = trace.graph
    for match in matches:
        if match.in_caller:
            _REWRITES[type(match.block)](graph, match)
    for node in graph.find_nodes(op="call_method", target="view"):
        if not any(isinstance(each, torch.dtype) for each in node.args):
            node.op, node.target = "call_function", viewed
    graph.lint()
    code = graph.python_code("self")
    namespace = dict(code.globals)
    exec(compile(code.src, f"<tritonconv {type(module).__name__}.forward>", "exec"), namespace)
    return swap.Forward(
        run=namespace["forward"],
        graph=graph,
        fuses=any(match.in_caller for match in matches),
        arity=trace.arity,
        kind=trace.kind,
        inputs=trace.inputs,
        parts={
            path: swap.Part(swap.children(module.get_submodule(path)), trace.reads.get(path, {}), path in trace.through)
            for path in sorted({*_holders(graph), *trace.reads, *trace.through})
        },
    )


def _fuse_conv(graph: fx.Graph, match: Match) -> None:
    block, input = match.block, match.nodes[0].all_input_nodes[0]
    residual = () if match.addition is None else (match.residual,)
    with graph.inserting_before(match.place):
        conv, norm = graph.get_attr(block.conv), _norm(graph, match)
        options = {}
        if block.pools:
            options = {"pool": _pool(graph, block), "ceil_mode": block.ceil_mode, "pool_first": block.pool_first}
        if block.padding:
            options["padding"] = block.padding
        if block.inner is not None:
            options["inner"] = _inner(graph, block)
        modules = conv, norm, _activation(graph, block)
        fused = graph.call_function(conv_block, (*modules, input, *residual), options)
    _replace(graph, match, fused)


def _fuse_activated(graph: fx.Graph, match: Match) -> None:
    block, (call, *_) = match.block, match.nodes
    with graph.inserting_before(match.place):
        norm, activation = _norm(graph, match), _activation(graph, block)
        readers = [graph.get_attr(f"{reader}.weight") for reader in block.readers]
        options = {"readers": readers} if readers else {}
        if block.module is None:
            given = block.kind, norm, activation, call.all_input_nodes[0]
            fused = graph.call_function(activated_norm, given, options)
        else:
            modules = graph.get_attr(block.module), norm, activation
            fused = graph.call_function(activated_block, (*modules, *call.args), call.kwargs | options)
    _replace(graph, match, fused)


def _average_first(graph: fx.Graph, match: Match) -> None:
    block, (convolution, _) = match.block, match.nodes
    with graph.inserting_before(match.place):
        modules = graph.get_attr(block.conv), graph.get_attr(block.pool)
        ours = graph.call_function(averaged_convolution, (*modules, *convolution.all_input_nodes))
    _replace(graph, match, ours)


def _norm(graph: fx.Graph, match: Match) -> fx.Node | tuple | None:
    if match.block.norm is not None:
        return graph.get_attr(match.block.norm)
    for value in match.statistics:
        for node in constants_of(value) or () if isinstance(value, fx.Node) else ():
            match.place.prepend(node)
    return match.statistics or None


def _activation(graph: fx.Graph, block: ConvBlock | ActivatedBlock | CallBlock) -> fx.Node | str | None:
    path = block.activation_module or block.slopes
    return block.activation if path is None else graph.get_attr(path)


def _inner(graph: fx.Graph, block: ConvBlock | CallBlock) -> fx.Node | str | None:
    return block.inner if block.inner_module is None else graph.get_attr(block.inner_module)


def _pool(graph: fx.Graph, block: ConvBlock) -> fx.Node | Pair:
    return block.window if block.pool_module is None else graph.get_attr(block.pool_module)


def _replace(graph: fx.Graph, match: Match, fused: fx.Node) -> None:
    match.nodes[-1].replace_all_uses_with(fused)
    for node in reversed(match.nodes):
        graph.erase_node(node)


def _retarget_pool(graph: fx.Graph, match: Match) -> None:
    (call,) = match.nodes
    if call.target in WITH_INDICES:
        call.kwargs = {**call.kwargs, "return_indices": True}
    call.target, call.args = choice.faster, (match.block.pattern, *call.args)


def _retarget_convolution(graph: fx.Graph, match: Match) -> None:
    block, call, pad = match.block, match.call, match.nodes[0]
    if pad is not call:
        call.replace_input_with(pad, pad.all_input_nodes[0])
        _pad_in(call, block)
    with graph.inserting_before(match.addition or call):
        if match.nodes[-1] is call:
            ours = graph.call_function(choice.faster, (block.function, *call.args), call.kwargs)
        else:
            epilogue = _inner(graph, block), _activation(graph, block), match.residual
            ours = graph.call_function(conv_call, (block.function, *epilogue, *call.args), call.kwargs)
    _replace(graph, match, ours)


def _retarget_dropout(graph: fx.Graph, match: Match) -> None:
    (call,) = match.nodes
    call.target = dropout


def _pad_in(call: fx.Node, block: CallBlock) -> None:
    """Makes the convolution pad its input as was done before it."""
    if block.function == "conv1d":
        call.update_kwarg("extra_padding", block.padding)
        return
    padding = widened(pair(padding_argument(call)), block.padding)
    if len(call.args) > PADDING:
        call.update_arg(PADDING, padding)
    else:
        call.update_kwarg("padding", padding)


_REWRITES = {
    ConvBlock: _fuse_conv,
    ActivatedBlock: _fuse_activated,
    PoolBlock: _retarget_pool,
    AveragedBlock: _average_first,
    CallBlock: _retarget_convolution,
    DropoutBlock: _retarget_dropout,
}


def _holders(graph: fx.Graph) -> list[str]:
    """The modules through which the graph reaches others, outermost first: "", "a", "a.b" for a call of "a.b.c"."""
    paths = {""}
    for node in graph.nodes:
        if node.op in ("call_module", "get_attr"):
            paths.update(accumulate(node.target.split(".")[:-1], "{}.{}".format))
    return sorted(paths)
