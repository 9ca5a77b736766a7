"""What `patch` tries on a sample: is each site faster than torch, and does the patched model compute the same?"""

from __future__ import annotations

import copy
import functools
import statistics
import time
from collections import defaultdict
from collections.abc import Callable, Collection, Hashable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from itertools import chain, islice

import torch
from rich.console import Console
from rich.progress import Progress
from torch import Tensor, fx, nn
from torch.utils._pytree import tree_map_only

from .. import engines
from ..blocks.modules import LEAVES, intercepted
from ..capture.match import Match
from ..capture.sites import Capture, block_site
from ..capture.trace import Trace
from ..launch.common import precision_of
from ..ops.interior import inside
from ..replay import NOT_REPLAYED, Replays
from ..sample import call, copied, inference, tensors_of
from ..timing import turns
from . import interior, memory, patch, swap
from .reporting import Site
from .rewrite import rewrite

_TIMED = 3  # at most, of sites that are alike
SECONDS = 5.0  # for timing, in all; compiling takes what it takes
_SHOWN_AFTER = 1.0  # seconds until there is a progress bar
# A site that takes less than so many seconds is run up to so many times in a row: what a replayed call of a model costs
# but once would outweigh a small kernel.
_SHORT, _ROW = 0.5e-3, 8
_TIMES = 4  # how much further from the exact result ours may be where rounding tells what comes out
_DOUBTFUL = 0.5  # of torch's speed: from there on a site is timed for longer before it is left to torch


def require_engine(sample: object) -> None:
    """Raises `ValueError` if no kernel can run on the sample."""
    device = tensors_of(sample)[0].device
    if engines.engine_for(device) is None:
        raise ValueError(f"patch: no kernel runs on {device}, to be timed or compared there: leave the sample out")


@dataclass(frozen=True)
class Piece:
    """A site by itself: how torch and how we run it, and inputs as it meets them in the model, without their values.

    kind: what its time depends on, beside them; sites that are alike in it take as long.
    in_a_row: gives what runs it so many times on the same inputs, torch's and ours; of once the result, of more theirs.
    """

    kind: Hashable
    in_a_row: Callable[[int], tuple[Callable, Callable]]
    inputs: list[Tensor]

    @functools.cached_property
    def once(self) -> tuple[Callable, Callable]:
        return self.in_a_row(1)

    @property
    def theirs(self) -> Callable:
        return self.once[0]

    @property
    def ours(self) -> Callable:
        return self.once[1]

    def times(self, device: torch.device) -> list[list[float]]:
        """Seconds that torch took, and that we took, in some turns."""
        inputs = [torch.randn_like(x, device=device) for x in self.inputs]

        def timed(times: int, **options) -> list[list[float]]:
            theirs, ours = self.in_a_row(times)
            return turns([lambda: theirs(*inputs), lambda: ours(*inputs)], device=device, **options)

        longest = max(map(min, timed(1, seconds=0.0, rounds=2, warm=1)))
        row = max(1, min(_ROW, int(_SHORT / longest)))
        found = timed(row, seconds=0.02, rounds=5, warm=4)  # the third call is recorded
        theirs, ours = map(statistics.median, found)
        if not _DOUBTFUL < theirs / ours < 1:
            return found
        more = timed(row, seconds=0.06, rounds=15, warm=4)  # a busy machine may have made the difference
        return [few + others for few, others in zip(found, more, strict=True)]


def speeds(model: nn.Module, found: Capture, sample: object) -> dict[str, float]:
    """Torch's time ÷ ours for each site of the unpatched `model`, by name, timed alone and in inference.

    Sites that are alike are timed as one, so that chance does not tell them apart. A site is missing that the sample
    does not reach, or for which no time was left.
    """
    device = tensors_of(sample)[0].device
    ratios, spent = {}, 0.0
    alike = defaultdict(dict)
    with inference(model):
        for fqn, piece in pieces_of(model, found, sample).items():
            inputs = tuple((x.shape, x.stride(), x.dtype) for x in piece.inputs)
            alike[piece.kind, inputs][fqn] = piece
        for pieces in shown(alike.values()):
            if spent > SECONDS:
                break
            timed = [piece.times(device) for piece in islice(pieces.values(), _TIMED)]
            theirs, ours = (list(chain(*times)) for times in zip(*timed, strict=True))
            ratios |= dict.fromkeys(pieces, statistics.median(theirs) / statistics.median(ours))
            spent += sum(theirs) + sum(ours)
    return ratios


def shown(items: Collection) -> Iterator:
    """The items; a progress bar appears when they take long."""
    begin = time.perf_counter()
    progress = Progress(console=Console(stderr=True), transient=True, auto_refresh=False)  # no thread beside compilers
    task = progress.add_task("timing sites", total=len(items))
    with ExitStack() as stack:
        for item in items:
            if not progress.live.is_started and time.perf_counter() - begin > _SHOWN_AFTER:
                stack.enter_context(progress)
            yield item
            progress.update(task, advance=1, refresh=progress.live.is_started)


def pieces_of(model: nn.Module, found: Capture, sample: object) -> dict[str, Piece]:
    """The sites that are to be patched and that an inference of `sample` reaches."""
    pieces: dict[str, Piece] = {}
    has_interior = model in interior.having_one(model, found)
    names = {module: fqn for fqn, module in model.named_modules()}
    covered = set()
    with ExitStack() as stack:
        for owner, forwards in found.forwards.items():
            covered.update(
                name for _, matches in forwards for match in matches for name in block_site(names, owner, match).members
            )
            if evaluating := [forward for forward in forwards if not forward[0].training]:
                owner.forward = _watched(names, owner, evaluating, pieces)
                stack.callback(delattr, owner, "forward")

        def note(module, inputs):
            def in_a_row(times):
                return _repeated(module, times), _repeated(functools.partial(_swapped(module), module), times)

            _note(pieces, names[module], repr(module), in_a_row, inputs)

        for leaf in found.leaves:
            # Others are called by a traced forward, or do nothing in inference.
            if names[leaf] not in covered and not isinstance(leaf, nn.Dropout):
                stack.callback(leaf.register_forward_pre_hook(note).remove)
        call(model, copied(sample))
    return {fqn: _within(piece) for fqn, piece in pieces.items()} if has_interior else pieces


def _within(piece: Piece) -> Piece:
    """The piece as it runs in a model's interior, where images are in channels_last memory."""

    def in_a_row(times: int) -> tuple[Callable, Callable]:
        theirs, ours = piece.in_a_row(times)

        def run(*inputs: Tensor) -> object:
            with inside():
                return ours(*inputs)

        return theirs, run

    return replace(piece, in_a_row=in_a_row, inputs=memory.arranged(piece.inputs, torch.channels_last))


def _swapped(module: nn.Module) -> Callable:
    """What runs `module`, given that and its inputs, once it is swapped."""
    return _with_hooks if intercepted(module) else LEAVES[type(module)]


def _with_hooks(module: nn.Module, *inputs, **options) -> object:
    """They may take their time: to compute a weight, say, which is then another one at every call."""
    swap.install(module, swap.Plan())
    try:
        return module(*inputs, **options)
    finally:
        swap.remove(module)


def _repeated(run: Callable, times: int) -> Callable:
    return run if times == 1 else lambda *inputs: tuple(run(*inputs) for _ in range(times))


def _note(pieces: dict[str, Piece], fqn: str, kind: Hashable, in_a_row: Callable, inputs: Sequence) -> None:
    """The first call of a site, if values of its inputs can be made up and there are any."""
    if all(isinstance(value, Tensor) and value.is_floating_point() and value.numel() for value in inputs):
        pieces.setdefault(fqn, Piece(kind, in_a_row, [torch.empty_like(value, device="meta") for value in inputs]))


def _watched(
    names: Mapping[nn.Module, str],
    owner: nn.Module,
    forwards: Sequence[tuple[Trace, list[Match]]],
    pieces: dict[str, Piece],
) -> Callable:
    """A forward of `owner` that does what was traced and notes the pieces on the way."""
    ends = {match.nodes[-1]: match for _, matches in forwards for match in matches if match.status != "left"}

    class Watch(fx.Interpreter):
        def run_node(self, node):
            if (match := ends.get(node)) is not None:
                inputs = [self.env[source] for source in _sources(match)]
                in_a_row = functools.partial(_in_a_row, owner, match)
                _note(pieces, block_site(names, owner, match).fqn, _kind(owner, match), in_a_row, inputs)
            return super().run_node(node)

    def forward(*args, **kwargs):
        for trace, _ in () if kwargs else forwards:
            if trace.takes(*args):
                return Watch(owner, garbage_collect_values=False, graph=trace.graph).run(*args)
        return type(owner).forward(owner, *args, **kwargs)

    return forward


def _kind(owner: nn.Module, match: Match) -> Hashable:
    """What `match` computes, whatever the modules' names."""
    return match.block.pattern, *(
        repr(owner.get_submodule(node.target))
        if node.op == "call_module"
        else (node.target, repr(fx.map_arg((node.args, node.kwargs), lambda _: None)))
        for node in match.nodes
    )


def _in_a_row(owner: nn.Module, match: Match, times: int) -> tuple[Callable, Callable]:
    """What runs `match` so many times, torch's and ours."""
    plain, _ = _cut(match, times)
    graph, copies = _cut(match, times)
    for alone in () if match.in_caller else copies:
        (leaf,) = alone.nodes
        with graph.inserting_before(leaf):
            leaf.args = graph.get_attr(leaf.target), *leaf.args
        leaf.op, leaf.target = "call_function", _swapped(owner.get_submodule(leaf.target))
    forward = rewrite(owner, Trace(graph, {}), copies if match.in_caller else [])
    return fx.GraphModule(owner, plain), _as_in_a_model(owner, forward)


def _as_in_a_model(owner: nn.Module, forward: swap.Forward) -> Callable:
    """The forward of a piece as it runs in a whole model: repeated, where that can be, without its checks."""
    replays = Replays({"": (forward,)})

    def ours(*inputs: Tensor) -> object:
        result = replays(owner, inputs)
        return forward.run(owner, *inputs) if result is NOT_REPLAYED else result

    return ours


def _sources(match: Match) -> list[fx.Node]:
    """The nodes that are the inputs of `match`."""
    sources = dict.fromkeys(source for node in match.nodes for source in node.all_input_nodes)
    return [source for source in sources if source not in match.nodes]


def _cut(match: Match, times: int) -> tuple[fx.Graph, list[Match]]:
    """The nodes of `match`, so many times over, in a graph of their own, and the matches there."""
    graph = fx.Graph()
    inputs = {source: graph.placeholder(source.name) for source in _sources(match)}
    cut, results = [], []
    for _ in range(times):
        copies = dict(inputs)
        for node in match.nodes:
            copies[node] = graph.node_copy(node, copies.get)
        nodes = tuple(map(copies.get, match.nodes))
        statistics = tuple(copies.get(value, value) for value in match.statistics)
        cut.append(replace(match, nodes=nodes, addition=copies.get(match.addition), statistics=statistics))
        results.append(nodes[-1])
    graph.output(results[0] if times == 1 else tuple(results))
    return graph, cut


def compare(model: nn.Module, sample: object, expected: object, sites: Iterable[Site]) -> None:
    """Raises `RuntimeError` unless the patched `model` gives what it gave before, up to half of the digits, or what is
    as near to the result in float64 as that was: the place of a maximum, say, may depend on how a sum is rounded."""
    with inference(model):
        got = call(model, copied(sample))
    allowed = max(map(_epsilon, tensors_of((list(model.parameters()), sample, expected)))) ** 0.5
    error = _error(got, expected)
    if error <= allowed or _is_as_near(model, sample, got, expected):
        return

    def alone(site: Site) -> float:
        chosen = {site.fqn, *site.members}
        with inference(model), patch.patched(model, filter_fn=lambda fqn, module: fqn in chosen):
            return _error(call(model, copied(sample)), expected)

    worst = max((site for site in sites if site.status != "left"), key=alone)
    raise RuntimeError(
        f"patch: {swap.name_of(model)} differs on the sample by {error:.2g} of its largest output, at most "
        f"{allowed:.2g} is allowed; alone, {worst.fqn} ({worst.pattern}) differs most, by {alone(worst):.2g}"
    )


def _is_as_near(model: nn.Module, sample: object, got: object, expected: object) -> bool:
    """Whether `got` is as near to the exact result as `expected` is, by the length of what they are off by: of what is
    rounded otherwise little is far off, of what is wrong much."""
    doubled = tree_map_only(Tensor, lambda x: x.double() if x.is_floating_point() else x.clone(), sample)
    try:
        exact = patch.unpatch(copy.deepcopy(model)).double()
        with inference(exact):
            result = call(exact, doubled)
    except (RuntimeError, TypeError, ValueError):  # it cannot be copied, or run in float64
        return False
    length = torch.linalg.vector_norm
    return _error(got, result, length) <= _TIMES * _error(expected, result, length)


def _epsilon(x: Tensor) -> float:
    if not x.is_floating_point():
        return 0.0
    return 2.0**-10 if precision_of(x) == "tf32" else torch.finfo(x.dtype).eps


def _error(got: object, expected: object, size: Callable[[Tensor], Tensor] = torch.max) -> float:
    """The largest difference between floating-point results, in units of the largest magnitude expected; or by another
    `size` of all."""
    worst = 0.0
    for ours, theirs in zip(tensors_of(got), tensors_of(expected), strict=True):
        if theirs.is_floating_point() and theirs.numel():
            ours, theirs = ours.double(), theirs.double()
            same = (ours == theirs) | (ours.isnan() & theirs.isnan())  # infinities too
            difference = (ours - theirs).abs().masked_fill(same, 0).nan_to_num(float("inf"))
            scale = theirs.masked_fill(~theirs.isfinite(), 0).abs()
            worst = max(worst, (size(difference) / size(scale)).nan_to_num(0.0).item())
    return worst
