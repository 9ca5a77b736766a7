"""What a recorded graph becomes: native calls, each of several launches, and between them what torch runs."""

from __future__ import annotations

import operator
import struct
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, fx, nn

from ..cpu import crew, runtime
from ..launch.room import lasting
from .fusing import fuse
from .joining import join
from .recorded import Launched, Room, Storage, View, constant_of, launched, views_of
from .tape import Tape

_ALIGNMENT = 64
_PAGE = 4096
KEPT = 1 << 26  # bytes of memory that a program keeps between calls

Places = dict[Storage | Room, int]


@dataclass(frozen=True)
class Segment:
    """Launches without anything between them. `jobs`: where each begins in the arguments of all. `moves`: (place in the
    arguments, which of the call's tensors, offset in bytes) of the addresses that change with every call."""

    jobs: tuple[int, ...]
    moves: tuple[tuple[int, int, int], ...]


@dataclass(frozen=True)
class Placed:
    """A tensor in the memory of a frame, from this byte on."""

    place: int
    shape: torch.Size
    stride: tuple[int, ...]
    dtype: torch.dtype


class Program:
    """Calling it gives what the recorded module gives for inputs of the recorded sizes. `cut`: a node from which on
    the graph may run several times, on what was there before.

    arguments: of all launches, one after the other, as if the memory of a frame, of `size` bytes, began at 0; `inner`:
    where in them an address within it is. views: the tensors in it that torch is given.
    constants, kernels: what arguments have addresses of.
    """

    def __init__(self, tape: Tape, cut: fx.Node | None = None):
        self.constants = tape.constants
        self.views: list[Placed] = []
        self.segments: list[Segment] = []
        self.arguments, self.inner = bytearray(), []
        self.kernels: list[runtime.Kernel] = []
        fuse(tape)
        join(tape.graph)
        nodes = list(tape.graph.nodes)
        self._places, self._top = _arena(nodes, len(nodes) if cut is None else nodes.index(cut))
        self.size = self._top
        self._compile(nodes)
        for node in nodes:
            node.meta.clear()  # a graph refers to itself, and goes late; these tensors are to go with the program
        self._frames: list[_Frame] = []
        self.calls = 0

    def __call__(self, root: nn.Module, inputs: tuple[Tensor, ...]) -> object:
        frame = self.lend()
        result = self._run(root, frame, *inputs)
        self.give_back(frame)
        self.calls += 1
        return result

    def lend(self) -> _Frame:
        """A frame for one call at a time."""
        try:
            return self._frames.pop()
        except IndexError:
            return _Frame(self)

    def give_back(self, frame: _Frame) -> None:
        if (len(self._frames) + 1) * self.size <= KEPT:
            self._frames.append(frame)

    def _compile(self, nodes: list[fx.Node]) -> None:
        self._run = function_of(self._graph(nodes, needed_of(nodes, self._places)))

    def _graph(self, nodes: list[fx.Node], needed: Collection[fx.Node], given=(), output=()) -> fx.Graph:
        """The recorded graph without what only launches need, and with calls of `run` in place of launches. Or of a
        part of it one that takes what is `given` of the nodes before, and gives the values of the `output`."""
        graph, places = fx.Graph(), self._places
        frame = graph.placeholder("frame")
        now = {node: graph.placeholder(f"{node.name}_before") for node in given}
        waiting: list[Launched] = []

        def run_waiting() -> None:
            if waiting:
                bases = bases_of(waiting, places)
                number = self._add_segment(waiting, bases, places)
                graph.call_function(run, (frame, number, *(now[storage.base] for storage in bases)))
                waiting.clear()

        for node in nodes:
            if node.target is launched:
                waiting.append(node.meta["launch"])
            elif node in needed:
                if node.target is constant_of:
                    now[node] = graph.call_function(constant, (frame, *node.args))
                elif is_placed(node, places):
                    (view,) = node.meta["views"]
                    self.views.append(Placed(places[view.storage] + view.offset, view.shape, view.stride, view.dtype))
                    now[node] = graph.call_function(placed, (frame, len(self.views) - 1))
                else:
                    if node.op not in ("placeholder", "get_attr") and node.target is not torch.empty_strided:
                        run_waiting()
                    now[node] = graph.node_copy(node, now.__getitem__)
        if output:
            run_waiting()
            graph.output(tuple(map(now.__getitem__, output)))
        return graph

    def _add_segment(self, launches: list[Launched], bases: list[Storage], places: Places) -> int:
        """The number of a new segment."""
        jobs, moves = [], []
        for launch in launches:
            if 0 in launch.launch.grid:
                continue
            self.kernels.append(launch.kernel)
            start, values = len(self.arguments), []
            for number, operand in enumerate(launch.operands):
                place = start + crew.HEADER_SIZE + 8 * number
                if isinstance(operand, Tensor):
                    values.append(operand.data_ptr())
                elif isinstance(operand, View) and operand.storage not in places:
                    values.append(0)
                    moves.append((place, bases.index(operand.storage), operand.offset - operand.storage.start))
                else:
                    memory, offset = (operand.storage, operand.offset) if isinstance(operand, View) else (operand, 0)
                    values.append(places[memory] + offset)
                    self.inner.append(place)
            job = launch.kernel.job(launch.launch.grid, [*values, *launch.launch.sizes], self._scratch)
            if launch.kernel.binary.scratch:
                self.inner.append(start + crew.SCRATCH)
            jobs.append(start)
            self.arguments += job
        self.segments.append(Segment(tuple(jobs), tuple(moves)))
        return len(self.segments) - 1

    def _scratch(self, size: int) -> int:
        self.size = max(self.size, self._top + size)
        return self._top


class _Frame:
    """What one call at a time runs on: memory, the tensors in it that torch is given, and arguments with addresses."""

    def __init__(self, program: Program):
        with torch.inference_mode(False):  # else torch could not write there outside of it
            self._memory = lasting((program.size + _PAGE,), torch.uint8, torch.device("cpu"))
            first = -self._memory.data_ptr() % _PAGE
            self.views = [self._tensor(view, first + view.place) for view in program.views]
        self.constants = program.constants
        self._arguments = np.frombuffer(bytearray(program.arguments), np.int64)
        self._arguments[np.array(program.inner, np.int64) // 8] += self._memory.data_ptr() + first
        self.run = crew.pool().run
        self._arrays, self.segments, start = [], [], self._arguments.ctypes.data
        for segment in program.segments:
            jobs = np.array(segment.jobs, np.int64) + start
            moves = np.array(segment.moves, np.int64).reshape(-1, 3) + (start, 0, 0)
            each = np.array((jobs.ctypes.data, len(jobs), moves.ctypes.data, len(moves)), np.int64)
            self._arrays += jobs, moves, each
            count = 1 + max((which for _, which, _ in segment.moves), default=-1)
            self.segments.append((each.ctypes.data, struct.Struct(f"={count}Q").pack))

    def _tensor(self, view: Placed, at: int) -> Tensor:
        size = 1 + sum((n - 1) * step for n, step in zip(view.shape, view.stride, strict=True))
        flat = self._memory[at : at + size * view.dtype.itemsize].view(view.dtype)
        return flat.as_strided(view.shape, view.stride).detach()


def run(frame: _Frame, number: int, *tensors: Tensor) -> None:
    """The launches of a segment, on these tensors beside those of the frame."""
    segment, pack = frame.segments[number]
    frame.run(segment, pack(*[tensor.data_ptr() for tensor in tensors]))


def placed(frame: _Frame, number: int) -> Tensor:
    return frame.views[number]


def constant(frame: _Frame, number: int) -> Tensor:
    return frame.constants[number]


def function_of(graph: fx.Graph) -> Callable:
    code = graph.python_code("self")
    namespace = dict(code.globals)
    exec(compile(code.src, "<tritonconv replay>", "exec"), namespace)
    return namespace["forward"]


def _arena(nodes: list[fx.Node], cut: int) -> tuple[Places, int]:
    """Where in one piece of memory each room lies, and each storage that may be used again at the next call; and the
    size of that piece. What is not needed at the same time may lie at the same place; what is made before the `cut` and
    needed after it is needed to the end. Rooms lie apart: a thread finds its part of one in its own cache, where it was
    at the launch before, and not in another thread's."""
    lives: dict[Storage, tuple[int, int]] = {}
    rooms: list[Room] = []
    lasting = {storage for node in nodes if node.meta.get("lasting") for storage in _touched(node)}
    for at, node in enumerate(nodes):
        for storage in _touched(node):
            if storage.made and storage not in lasting:
                lives[storage] = lives.get(storage, (at,))[0], at
        if (launch := node.meta.get("launch")) is not None:
            rooms += [operand for operand in launch.operands if isinstance(operand, Room)]
    for each, (first, last) in lives.items():
        if first < cut <= last:
            lives[each] = first, len(nodes)
    places: Places = {}
    top = 0
    for each in sorted(lives, key=_size, reverse=True):
        first, last = lives[each]
        beside = [other for other in places if lives[other][0] <= last and first <= lives[other][1]]
        place = 0
        for other in sorted(beside, key=places.__getitem__):
            if place + _size(each) <= places[other]:
                break
            place = max(place, places[other] + _size(other))
        places[each] = place
        top = max(top, place + _size(each))
    places.update(dict.fromkeys(rooms, top))
    return places, top + max(map(_size, rooms), default=0)


def _touched(node: fx.Node) -> dict[Storage, None]:
    """The memory of what goes into the node and comes out, in an order that is always the same."""
    return dict.fromkeys(view.storage for each in (node, *node.all_input_nodes) for view in views_of(each))


def _size(each: Storage | Room) -> int:
    return -(-each.size // _ALIGNMENT) * _ALIGNMENT


def is_placed(node: fx.Node, places: Places) -> bool:
    """Whether its value is a tensor in the arena that nothing is to be computed for."""
    if len(views_of(node)) != 1 or views_of(node)[0].storage not in places or node.op != "call_function":
        return False
    function = node.target
    return function is torch.empty_strided or (isinstance(function, torch._ops.OpOverload) and function.is_view)


def needed_of(nodes: list[fx.Node], places: Places) -> set[fx.Node]:
    """The nodes that have to be there when the launches are not."""
    needed: set[fx.Node] = set()
    for node in reversed(nodes):
        if node.op == "call_function" and node.target is launched:
            needed.update(storage.base for storage in bases_of([node.meta["launch"]], places))
        elif node in needed or not _is_pure(node):
            needed.add(node)
            if not is_placed(node, places):
                needed.update(node.all_input_nodes)
    return needed


def _is_pure(node: fx.Node) -> bool:
    if node.op == "get_attr" or node.target in (constant_of, torch.empty_strided, operator.getitem):
        return True
    return isinstance(node.target, torch._ops.OpOverload) and not node.target._schema.is_mutable


def bases_of(launches: Iterable[Launched], places: Places) -> list[Storage]:
    """The storages that the launches are given anew at every call."""
    views = (operand for launch in launches for operand in launch.operands if isinstance(operand, View))
    return list(dict.fromkeys(view.storage for view in views if view.storage not in places))
