"""What a recorded graph becomes: native calls, each of several launches, and between them what torch runs."""

from __future__ import annotations

import operator
import struct
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, fx, nn

from ..cpu import runtime
from .tape import Launched, Room, Storage, Tape, View, constant_of, launched

_ALIGNMENT = 64
_KEPT = 1 << 26  # bytes of memory that a program keeps between calls


@dataclass(frozen=True)
class Segment:
    """Launches without anything between them. `jobs`: where each begins in the arguments of all. `moves`: (place in the
    arguments, which of the call's tensors, offset in bytes) of the addresses that change with every call."""

    jobs: tuple[int, ...]
    moves: tuple[tuple[int, int, int], ...]


class Program:
    """Calling it gives what the recorded module gives for inputs of the recorded sizes."""

    def __init__(self, tape: Tape):
        nodes = list(tape.graph.nodes)
        self._constants = tape.constants
        self._places, top = _arena(nodes)
        self._arguments = bytearray()
        self._inner: list[int] = []  # where in the arguments an address within the arena is
        self._segments: list[Segment] = []
        self._views: list[View] = []
        self._top = self._size = top
        graph = self._graph(nodes)
        code = graph.python_code("self")
        self.source = code.src
        namespace = dict(code.globals)
        exec(compile(code.src, "<tritonconv replay>", "exec"), namespace)
        self._run = namespace["forward"]
        self._frames: list[_Frame] = []

    def __call__(self, root: nn.Module, inputs: tuple[Tensor, ...]) -> object:
        try:
            frame = self._frames.pop()  # each call at a time has one of its own
        except IndexError:
            frame = _Frame(self)
        result = self._run(root, frame, *inputs)
        if (len(self._frames) + 1) * self._size <= _KEPT:
            self._frames.append(frame)
        return result

    def _graph(self, nodes: list[fx.Node]) -> fx.Graph:
        """The recorded graph without what only launches need, and with calls of `run` in place of launches."""
        needed, graph = _needed(nodes, self._places), fx.Graph()
        frame = graph.placeholder("frame")
        now: dict[fx.Node, fx.Node] = {}
        waiting: list[Launched] = []

        def run_waiting() -> None:
            if waiting:
                bases = _bases(waiting, self._places)
                graph.call_function(run, (frame, self._segment(waiting, bases), *(now[s.base] for s in bases)))
                waiting.clear()

        for node in nodes:
            if node.op == "call_function" and node.target is launched:
                waiting.append(node.meta["launch"])
            elif node in needed:
                if node.target is constant_of:
                    now[node] = graph.call_function(constant, (frame, *node.args))
                elif _is_view(node, self._places):
                    self._views.append(node.meta["views"][0])
                    now[node] = graph.call_function(view, (frame, len(self._views) - 1))
                else:
                    if node.op not in ("placeholder", "get_attr") and node.target is not torch.empty_strided:
                        run_waiting()
                    now[node] = graph.node_copy(node, now.__getitem__)
        return graph

    def _segment(self, launches: list[Launched], bases: list[Storage]) -> int:
        """The number of a new segment; puts the arguments of its launches behind those there are."""
        jobs, moves = [], []
        for launch in launches:
            start, values = len(self._arguments), []
            for number, operand in enumerate(launch.operands):
                place = start + runtime.HEADER_SIZE + 8 * number
                if isinstance(operand, Tensor):
                    values.append(operand.data_ptr())
                elif isinstance(operand, View) and operand.storage not in self._places:
                    values.append(0)
                    moves.append((place, bases.index(operand.storage), operand.offset - operand.storage.start))
                else:
                    memory, offset = (operand.storage, operand.offset) if isinstance(operand, View) else (operand, 0)
                    values.append(self._places[memory] + offset)
                    self._inner.append(place)
            job = launch.kernel.job(launch.grid, [*values, *launch.sizes], self._scratch)
            if job is None:  # an empty grid
                raise AssertionError("kernels are not launched on nothing")
            if launch.kernel.binary.scratch:
                self._inner.append(start + runtime.SCRATCH)
            jobs.append(start)
            self._arguments += job
        self._segments.append(Segment(tuple(jobs), tuple(moves)))
        return len(self._segments) - 1

    def _scratch(self, size: int) -> int:
        self._size = max(self._size, self._top + size)
        return self._top


class _Frame:
    """What one call at a time runs on: memory, the tensors in it that torch is given, and arguments with addresses."""

    def __init__(self, program: Program):
        with torch.inference_mode(False):  # else torch could not write there outside of it
            self._memory = torch.empty(program._size + 4096, dtype=torch.uint8, device="cpu")
            base = -(-self._memory.data_ptr() // 4096) * 4096
            first = base - self._memory.data_ptr()
            self.views = [self._tensor(v, first + program._places[v.storage] + v.offset) for v in program._views]
        self.constants = program._constants
        self._arguments = np.frombuffer(bytearray(program._arguments), np.int64)
        words = np.array(program._inner, np.int64) // 8
        self._arguments[words] += base
        start, pool = self._arguments.ctypes.data, runtime.pool()
        self._native, self._arrays, self.segments = pool.run, [], []
        for segment in program._segments:
            jobs = np.array(segment.jobs, np.int64) + start
            moves = np.array(segment.moves, np.int64).reshape(-1, 3) + (start, 0, 0)
            self._arrays += jobs, moves
            count = 1 + max((which for _, which, _ in segment.moves), default=-1)
            pack = struct.Struct(f"={count}Q").pack
            self.segments.append((jobs.ctypes.data, len(jobs), moves.ctypes.data, len(moves), pack))

    def _tensor(self, view: View, at: int) -> Tensor:
        size = 1 + sum((n - 1) * step for n, step in zip(view.shape, view.stride, strict=True))
        flat = self._memory[at : at + size * view.dtype.itemsize].view(view.dtype)
        return flat.as_strided(view.shape, view.stride).detach()

    def run(self, number: int, tensors: tuple[Tensor, ...]) -> None:
        jobs, count, moves, moved, pack = self.segments[number]
        self._native(jobs, count, moves, moved, pack(*[tensor.data_ptr() for tensor in tensors]))


def run(frame: _Frame, number: int, *tensors: Tensor) -> None:
    """The launches of a segment, on these tensors beside those of the frame."""
    frame.run(number, tensors)


def view(frame: _Frame, number: int) -> Tensor:
    return frame.views[number]


def constant(frame: _Frame, number: int) -> Tensor:
    return frame.constants[number]


def _arena(nodes: list[fx.Node]) -> tuple[dict[Storage | Room, int], int]:
    """Where in one piece of memory each room lies, and each storage that may be used again at the next call; and the
    size of that piece. What is not needed at the same time may lie at the same place."""
    lives: dict[Storage | Room, tuple[int, int]] = {}
    lasting = {v.storage for n in nodes if n.meta.get("lasting") for used in (n, *n.all_input_nodes) for v in _views(used)}
    for at, node in enumerate(nodes):
        touched = [*_views(node), *(view for used in node.all_input_nodes for view in _views(used))]
        for storage in {view.storage for view in touched}:
            if storage.made and storage not in lasting:
                lives[storage] = lives.get(storage, (at,))[0], at
        if (launch := node.meta.get("launch")) is not None:
            lives.update((operand, (at, at)) for operand in launch.operands if isinstance(operand, Room))
    places: dict[Storage | Room, int] = {}
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
    return places, top


def _views(node: fx.Node) -> list[View]:
    return node.meta.get("views", [])


def _size(each: Storage | Room) -> int:
    return -(-each.size // _ALIGNMENT) * _ALIGNMENT


def _is_view(node: fx.Node, places: dict) -> bool:
    """Whether its value is a tensor in the arena that nothing is to be computed for."""
    if len(_views(node)) != 1 or _views(node)[0].storage not in places or node.op != "call_function":
        return False
    function = node.target
    return function is torch.empty_strided or (isinstance(function, torch._ops.OpOverload) and function.is_view)


def _needed(nodes: list[fx.Node], places: dict) -> set[fx.Node]:
    """The nodes that have to be there when the launches are not."""
    needed: set[fx.Node] = set()
    for node in reversed(nodes):
        if node.op == "call_function" and node.target is launched:
            needed.update(storage.base for storage in _bases([node.meta["launch"]], places))
        elif node in needed or not _is_pure(node):
            needed.add(node)
            if not _is_view(node, places):
                needed.update(node.all_input_nodes)
    return needed


def _is_pure(node: fx.Node) -> bool:
    if node.op == "get_attr" or node.target in (constant_of, torch.empty_strided, operator.getitem):
        return True
    return isinstance(node.target, torch._ops.OpOverload) and not node.target._schema.is_mutable


def _bases(launches: Iterable[Launched], places: dict) -> list[Storage]:
    """The storages that the launches are given anew at every call."""
    views = (operand for launch in launches for operand in launch.operands if isinstance(operand, View))
    return list(dict.fromkeys(view.storage for view in views if view.storage not in places))
