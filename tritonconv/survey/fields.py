"""How receptive fields pass through torch's operators.

What is no convolution, pooling or interpolation is judged by its sizes: fewer pixels than before count as adaptive
pooling, more as padding, an image without its height and width as one that is seen as a whole. So a field is wrong
where an operator mixes pixels and keeps their number (attention, a Fourier transform). Samples are batched.
"""

from __future__ import annotations

from torch import Size, Tensor, nn
from torch.utils.weak import WeakIdKeyDictionary

from ..geometry import ReceptiveField

Field = tuple[ReceptiveField, ReceptiveField]  # along H and W

_KEEP = {"slice", "narrow", "select", "permute", "transpose", "index", "constant_pad_nd"}
_NEIGHBOURS = {"linear": 2, "cubic": 4}  # that an interpolated pixel is made of, along an axis


class Fields:
    """The receptive field of every tensor that depends on `inputs`; it holds none of them."""

    def __init__(self, inputs: list[Tensor]):
        self._of = WeakIdKeyDictionary()
        for tensor in inputs:
            self._of[tensor] = ReceptiveField(), ReceptiveField()

    def of(self, tensors: list[Tensor]) -> Field | None:
        """Of what is computed from all of `tensors`: the largest, where branches meet."""
        found = [self._of[tensor] for tensor in tensors if tensor in self._of]
        if not found:
            return None
        joined, *others = found
        for other in others:
            joined = joined[0].joined(other[0]), joined[1].joined(other[1])
        return joined

    def follow(self, name: str, args: tuple, inputs: list[Tensor], outputs: list[Tensor]) -> None:
        """Notes what the operator `name` made."""
        field = self.of(inputs)
        if field is not None:
            before = next(tensor for tensor in inputs if tensor in self._of).shape
            for output in outputs:
                self._of[output] = _through(name, field, args, before, output.shape)

    def leave(self, module: nn.Module, inputs: list[Tensor], outputs: list[Tensor]) -> None:
        """Notes what a module made: a linear one works on channels, for which it may regroup the pixels."""
        if isinstance(module, nn.Linear) and (field := self.of(inputs)) is not None:
            self._of[outputs[0]] = field


def _through(name: str, field: Field, args: tuple, before: Size, after: Size) -> Field:
    if name == "convolution":
        window = args[1].shape[2:]
        if args[6]:
            return _each(field, ReceptiveField.transposed, window, args[3], args[5])
        return _each(field, ReceptiveField.through, window, args[3], args[5])
    if "_pool" in name and not name.startswith(("adaptive", "max_unpool")):
        window, stride = args[1], (args[2:3] or [None])[0] or args[1]
        dilation = args[4] if name.startswith("max_pool") and len(args) > 4 else [1]
        return _each(field, ReceptiveField.through, window, stride, dilation)
    if name in _KEEP or len(before) not in (3, 4) or len(after) > len(before):
        return field
    if len(after) < len(before):
        return _each(field, ReceptiveField.resized, before[2:], [1])
    larger = any(b < a for b, a in zip(before[2:], after[2:], strict=True))
    if larger and not ("upsample" in name or "unpool" in name):
        return field
    window = next((count for kind, count in _NEIGHBOURS.items() if kind in name and "upsample" in name), 1)
    return _each(field, ReceptiveField.resized, before[2:], after[2:], [window])


def _each(field: Field, step, *arguments) -> Field:
    """`step` along each axis that `arguments` have, the last ones, at most H and W; one number holds for all."""
    axes = len(arguments[0])
    columns = list(zip(*(list(a) * axes if len(a) == 1 else list(a) for a in arguments), strict=True))[-2:]
    kept = 2 - len(columns)
    return (*field[:kept], *(step(f, *column) for f, column in zip(field[kept:], columns, strict=True)))
