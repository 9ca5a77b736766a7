"""Calls with gradients that are like earlier ones: forward and backward in a few native calls each.

Around a small kernel autograd costs several times what the kernel does: a node for each operator, Python for each of
ours. So a call in training is recorded with its gradients, all operators of torch's among it, and becomes one node of
autograd's. What backward needs of forward stays in the frame that the call had, which nobody else gets as long as the
node is there.
"""

from __future__ import annotations

from collections.abc import Callable, Collection

import torch
from torch import Tensor, fx, nn
from torch.autograd import Function

from ..ops.batched import one_by_one
from .guard import Guard
from .program import KEPT, Program, bases_of, function_of, is_placed, needed_of
from .recorded import constant_of, launched, views_of
from .tape import Forward, Tape, is_torchs


def is_watched(inputs: tuple[Tensor, ...]) -> bool:
    """Whether somebody looks at what a call keeps for backward, or wants the inputs' gradients."""
    return any(x.requires_grad for x in inputs) or torch._C._autograd._top_saved_tensors_default_hooks(True) is not None


class StepTape(Tape):
    """Records a call, and then the gradients of its result. All is a block here: what torch's functions and modules do
    depends on their arguments and on the modules' attributes. leaves: the parameters with a gradient. result, cut: the
    nodes of the call's result and of its gradient, where backward begins.
    """

    gradients = True

    def record(self, forward: Forward, inputs: tuple[Tensor, ...]) -> object:
        self.forward = forward
        self.leaves = [parameter for parameter in self.root.parameters() if parameter.requires_grad]
        if any(leaf._backward_hooks for leaf in self.leaves):
            self.refusal = "a hook waits for gradients"
        _, y = self._run(forward, inputs)
        if not isinstance(y, Tensor) or not y.requires_grad or self._found(y) is None:
            self.refusal = "the result is not one tensor with a gradient"
        elif 0 in y.stride():  # it may be a view, and a copy has no such strides
            self.refusal = "the result repeats an element"
        if sum(storage.size for storage in self._storages.values() if storage.made) > KEPT:
            self.refusal = "it makes too much to be kept"
        if not self.refusal:
            self._differentiate(y)
        return y

    def _differentiate(self, y: Tensor) -> None:
        self.result = self._by_view[self._view_of(y)]  # the first such node: it made the memory, unless y is a view
        self.cut, dy = self.graph.placeholder("gradient"), torch.ones_like(y)
        self._note(self.cut, dy)
        nodes, gradients = self._block(
            lambda: torch.autograd.grad(y, self.leaves, dy, retain_graph=True, allow_unused=True)
        )
        if self.refusal:
            return
        self.leaves = [leaf for leaf, gradient in zip(self.leaves, gradients, strict=True) if gradient is not None]
        output = self.graph.output((self.result, *filter(None, nodes)))
        self._note(output, [value for value in (y, *gradients) if value is not None], lasting=True)

    def _named(self, path: str, value: Tensor) -> fx.Node:
        return self._node_of(value)

    def _called(self, child: nn.Module, path: str, stand_ins, run: Callable[[], object]) -> tuple[object, object]:
        self.parts.add(child)
        hidden = child._modules or "forward" in vars(child) or not is_torchs(type(child))
        return self._call("call_module", path, stand_ins, run, hidden)

    def _call(self, op: str, target, stand_ins, run: Callable[[], object], lasting: bool) -> tuple[object, object]:
        if lasting:
            self.refusal = f"{target} may do more than what torch's operators do"
        return self._block(run)

    def _operator(self, function, args: tuple, kwargs: dict, value: object) -> None:
        if torch.Tag.nondeterministic_seeded in function.tags:
            self.refusal = f"{function} draws random numbers, which a second derivative would draw again"
        super()._operator(function, args, kwargs, value)

    def _is_known(self, leaf: object) -> bool:
        """Numbers stand for themselves: they are of sizes, since nobody looked at values."""
        return not isinstance(leaf, Tensor) or super()._is_known(leaf)


class Step(Program):
    """Calling it gives what the recorded module gives, with gradients of the `leaves`.

    forward(root, frame, *inputs) gives the result, then `saves` tensors for autograd to keep, and others;
    backward(root, frame, *those, gradient) the gradients of the leaves. read: parameters and buffers that backward
    reads. copies: whether the result is a view, or shares memory with what backward needs. strides: those that the
    gradient must have. usual: the recorded forward, for derivatives of a higher order.
    """

    def __init__(self, tape: StepTape, guard: Guard):
        self.leaves, self.usual, self.holds = tuple(tape.leaves), tape.forward.run, guard
        self.strides = views_of(tape.cut)[0].stride
        self._tape = tape
        super().__init__(tape, tape.cut)
        del self._tape

    def __call__(self, root: nn.Module, inputs: tuple[Tensor, ...]) -> Tensor:
        self.calls += 1
        return Repeated.apply(self, root, len(inputs), *inputs, *self.leaves)

    def _compile(self, nodes: list[fx.Node]) -> None:
        result, needed, cut = self._tape.result, needed_of(nodes, self._places), nodes.index(self._tape.cut)
        before, after, (_, *gradients) = nodes[:cut], nodes[cut:-1], nodes[-1].args[0]
        used = self._used(after, needed) | set(gradients)
        again = [node for node in before if node in used and self._is_at_hand(node)]
        crossing = [node for node in before if node in used and not self._is_at_hand(node)]
        own = views_of(result)[0].storage
        self.copies = any(view.storage is own for node in crossing if node is not result for view in views_of(node))
        self.copies |= result is not own.base
        # Inputs and the result are kept by autograd, which notices when they change.
        saved = [node for node in crossing if node.op == "placeholder" or (node is result and not self.copies)]
        given = saved + [node for node in crossing if node not in saved]
        self.saves = len(saved)
        self.read = self._read(after)
        self.forward = function_of(self._graph(before, needed, output=(result, *given)))
        self.backward = function_of(self._graph([after[0], *again, *after[1:]], needed, given, gradients))

    def _used(self, nodes: list[fx.Node], needed: Collection[fx.Node]) -> set[fx.Node]:
        """What these nodes are given in Python."""
        used: set[fx.Node] = set()
        for node in nodes:
            if node.target is launched:
                used.update(storage.base for storage in bases_of([node.meta["launch"]], self._places))
            elif node in needed and not is_placed(node, self._places):
                used.update(node.all_input_nodes)
        return used

    def _is_at_hand(self, node: fx.Node) -> bool:
        return node.target is constant_of or is_placed(node, self._places)

    def _read(self, nodes: list[fx.Node]) -> tuple[Tensor, ...]:
        launches = [node.meta["launch"] for node in nodes if node.target is launched]
        operands = [operand for launch in launches for operand in launch.operands if isinstance(operand, Tensor)]
        storages = {view.storage for node in nodes for each in (node, *node.all_input_nodes) for view in views_of(each)}
        read = [tensor for tensor in self.constants if self._tape.storage_of(tensor) in storages]
        return tuple({id(tensor): tensor for tensor in operands + read}.values())


class _Lent:
    """A frame, for as long as anybody needs what is in it."""

    def __init__(self, step: Step):
        self.step, self.frame = step, step.lend()

    def __del__(self):
        self.step.give_back(self.frame)


class Repeated(Function):
    """A call of `root` as its recorded `step`: of `count` inputs, and of the step's leaves."""

    @staticmethod
    def forward(ctx, step: Step, root: nn.Module, count: int, *tensors: Tensor) -> Tensor:
        inputs, ctx.lent = tensors[:count], _Lent(step)
        y, *needed = step.forward(root, ctx.lent.frame, *inputs)
        ctx.step, ctx.root, ctx.count, ctx.kept = step, root, count, needed[step.saves :]
        ctx.save_for_backward(*inputs, *step.read, *needed[: step.saves])
        return torch.empty_strided(y.shape, y.stride(), dtype=y.dtype).copy_(y) if step.copies else y

    @staticmethod
    @one_by_one
    def backward(ctx, dy: Tensor):
        step, tensors = ctx.step, ctx.saved_tensors
        inputs, saved = tensors[: ctx.count], tensors[len(tensors) - step.saves :]
        if torch.is_grad_enabled():
            gradients = _differentiable(step, ctx.root, inputs, dy)
        else:
            if dy.stride() != step.strides:
                dy = torch.empty_strided(dy.shape, step.strides, dtype=dy.dtype).copy_(dy)
            gradients = step.backward(ctx.root, ctx.lent.frame, *saved, *ctx.kept, dy)
        return *(None,) * (3 + ctx.count), *gradients


def _differentiable(step: Step, root: nn.Module, inputs: tuple[Tensor, ...], dy: Tensor) -> tuple[Tensor, ...]:
    """The gradients by another forward, which counts no batch a second time."""
    if not step.holds(root):
        name = type(root).__name__
        raise RuntimeError(f"{name} has changed since the forward whose gradients are to be differentiated")
    buffers = [(buffer.data, buffer.clone()) for buffer in root.buffers()]
    with torch.enable_grad():
        y = step.usual(root, *inputs)
    for buffer, before in buffers:
        buffer.copy_(before)
    return torch.autograd.grad(y, step.leaves, dy, create_graph=True)
