"""What one forward of a model does, layer by layer: shapes, receptive fields, work, and the site that each belongs to.

Nothing is computed from the modules' attributes: the operators are recorded while they run, whatever the forward is.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from . import patching
from .capture import Accept, Capture, block_site, capture
from .configs import Geometry
from .fields import Field, Fields
from .geometry import NormGeometry
from .ops import conv, pool
from .reporting import Site
from .sample import call, inference, tensors_of

# What the operators that run are called in Python.
_NAMES = {"max_pool2d_with_indices": "max_pool2d", "hardtanh": "relu6", "iadd": "add"}


@dataclass(frozen=True)
class Layer:
    """A call of a module without children, or of an operator outside of one.

    name: fully qualified name of the module, or of the caller and the operator (`decoder.add_1`).
    flops: of convolutions and matrix products, two per multiply-add, as torch's own counter has them.
    bytes: inputs, parameters, buffers and outputs, each moved once.
    geometry: what kernels are chosen by, or why torch runs it; None for operators that have no kernels.
    site: that the layer is a part of.
    """

    name: str
    kind: str
    input: tuple[int, ...]
    output: tuple[int, ...]
    dtype: torch.dtype
    device: torch.device
    parameters: int
    flops: int
    bytes: int
    field: Field | None
    geometry: Geometry | str | None
    site: Site | None = None


def survey(
    model: nn.Module, sample: object, accept: Accept = lambda fqn, module: True
) -> tuple[list[Layer], list[Site]]:
    """The layers of an inference of `sample` by the unpatched model, as they ran, and the model's sites."""
    with patching.put_back(model), inference(model):
        found = capture(patching.unpatch(model), accept)
        names = {module: fqn for fqn, module in model.named_modules()}
        site_of = _site_of(found, names)
        recorder = _Recorder(names, tensors_of(sample))
        call(model, sample, recorder)
    return [replace(layer, site=site_of.get(layer.name)) for layer in recorder.layers], found.sites


def _site_of(found: Capture, names: Mapping[nn.Module, str]) -> dict[str, Site]:
    """Per name of a layer the site that it is a part of."""
    site_of = {member: site for site in found.sites for member in site.members}
    for owner, forwards in found.forwards.items():
        for trace, matches in forwards:
            if trace.reads.get("training"):
                continue
            covers = {node: block_site(names[owner], match) for match in matches for node in match.nodes}
            counts = Counter()
            for node in trace.graph.nodes:
                if node.op in ("call_function", "call_method"):
                    name = _plain(getattr(node.target, "__name__", node.target))
                    if node in covers:
                        site_of[_join(names[owner], name, counts[name])] = covers[node]
                    counts[name] += 1
    return site_of


def _plain(name: str) -> str:
    return _NAMES.get(name.strip("_"), name.strip("_"))


def _join(caller: str, name: str, count: int) -> str:
    """As torch.fx numbers them."""
    return ".".join(part for part in (caller, f"{name}_{count}" if count else name) if part)


class _Recorder(TorchDispatchMode):
    """Collects `layers` from the modules and operators that run within it."""

    def __init__(self, names: Mapping[nn.Module, str], inputs: list[Tensor]):
        super().__init__()
        self.names = names
        self.fields = Fields(inputs)
        self.layers: list[Layer] = []
        self.callers: list[tuple[str, Counter]] = [("", Counter())]
        self.leaf: list[tuple[int, Geometry | str | None]] | None = None  # FLOPs and geometry of what it has run

    def __enter__(self):
        self.hooks = [module.register_forward_pre_hook(self._begin) for module in self.names]
        self.hooks += [module.register_forward_hook(self._end, with_kwargs=True) for module in self.names]
        return super().__enter__()

    def __exit__(self, *error):
        for hook in self.hooks:
            hook.remove()
        return super().__exit__(*error)

    def _begin(self, module, inputs):
        self.callers.append((self.names[module], Counter()))
        self.leaf = None if module._modules else []

    def _end(self, module, args, kwargs, output):
        name, _ = self.callers.pop()
        if self.leaf is not None:
            inputs, outputs = tensors_of((args, kwargs)), tensors_of(output)
            self.fields.leave(module, inputs, outputs)
            own = [*module.parameters(), *module.buffers()]
            geometry = next((geometry for _, geometry in self.leaf if geometry is not None), None)
            self._add(name, type(module).__name__, inputs, own, outputs, sum(n for n, _ in self.leaf), geometry)
            self.leaf = None

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        name = _plain(func.overloadpacket.__name__)
        inputs = tensors_of((args, kwargs))
        geometry = _geometry(name, args)
        output = func(*args, **kwargs)
        outputs = tensors_of(output)
        self.fields.follow(name, args, inputs, outputs)
        count = flop_registry.get(func.overloadpacket)
        flops = count(*args, **kwargs, out_val=output) if count else 0
        if self.leaf is not None:
            self.leaf.append((flops, geometry))
        elif not func.is_view:
            caller, counts = self.callers[-1]
            self._add(_join(caller, name, counts[name]), name, inputs, [], outputs, flops, geometry)
            counts[name] += 1
        return output

    def _add(self, name, kind, inputs, own, outputs, flops, geometry) -> None:
        if not inputs or not outputs:
            return
        input, output = inputs[0], outputs[0]
        parameters = sum(value.numel() for value in own if isinstance(value, nn.Parameter))
        moved = sum(value.numel() * value.itemsize for value in (*inputs, *own, *outputs))
        shapes = tuple(input.shape), tuple(output.shape)
        where, field = (input.dtype, input.device), self.fields.of([output])
        self.layers.append(Layer(name, kind, *shapes, *where, parameters, flops, moved, field, geometry))


def _convolution(input, weight, bias, stride, padding, dilation, transposed, _, groups) -> Geometry | str | None:
    return None if transposed else conv.geometry_of(input, weight, bias, stride, padding, dilation, groups)


def _max_pool(input, kernel_size, stride=None, padding=0, dilation=1, ceil_mode=False) -> Geometry | str:
    return pool.geometry_of(input, kernel_size, stride, padding, dilation, ceil_mode)


def _norm(input, *_) -> Geometry:
    return NormGeometry(input.numel() // input.shape[1], input.shape[1])


_GEOMETRIES: dict[str, Callable] = {
    "convolution": _convolution,
    "max_pool2d": _max_pool,
    "native_batch_norm": _norm,
    "native_batch_norm_legit_no_training": _norm,
    "cudnn_batch_norm": _norm,
}


def _geometry(name: str, args: tuple) -> Geometry | str | None:
    return _GEOMETRIES[name](*args) if name in _GEOMETRIES else None
