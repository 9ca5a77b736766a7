"""What one forward of a model does, layer by layer: shapes, receptive fields, work, and the site that each belongs to.

Nothing is computed from the modules' attributes: the operators are recorded while they run, whatever the forward is.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from .. import choice, engines
from ..capture.sites import Capture, block_site, capture
from ..capture.through import owner_of
from ..choice import is_nhwc, untuned_is_slower
from ..configs import Geometry
from ..geometry import GroupGeometry, NormGeometry, PoolGeometry
from ..ops import conv, conv1d, conv_transpose, pool
from ..ops.support import DTYPES
from ..patching import patch, trial
from ..patching.checks import require_model
from ..patching.reporting import Site
from ..sample import call, copied, inference, tensors_of
from .fields import Field, Fields

# An operation of `configs.space`, and its geometry, or why torch runs it.
Problem = tuple[str, Geometry | str]

# What the operators that run are called in Python.
_NAMES = {"hardtanh": "relu6", "iadd": "add"} | {
    f"{pool}1d": f"{pool}2d" for pool in ("max_pool", "avg_pool", "adaptive_max_pool")  # of images of one row
}


@dataclass(frozen=True)
class Layer:
    """A call of a module without children, or of an operator outside of one.

    name: fully qualified name of the module, or of the caller and the operator (`decoder.add_1`).
    flops: of convolutions and matrix products, two per multiply-add, as torch's own counter has them.
    bytes: inputs, parameters, buffers and outputs, each moved once.
    problem: what a kernel is chosen by; None for operators that have none, or whose kernels have no choice.
    site: that the layer is a part of.
    nhwc: whether its input is in channels_last memory.
    tuned: whether tuning found torch to be faster at the site, or not; None if it is not tuned.
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
    problem: Problem | None
    site: Site | None = None
    nhwc: bool = False
    tuned: bool | None = None

    @property
    def intensity(self) -> float:
        return intensity(self.flops, self.bytes)

    @property
    def refusal(self) -> str:
        """Why torch runs the layer though the model is patched; "" if a kernel does."""
        if self.site is None:
            return "no kernel computes it"
        if self.site.status == "left":
            return self.site.reason
        if self.dtype not in DTYPES:
            return f"dtype {self.dtype}"
        if self.tuned:
            return "tuning found torch faster"
        if self.tuned is None and untuned_is_slower(self.site.pattern, self.device, math.prod(self.input), self.nhwc):
            return "torch is faster at this size, unless tuning finds otherwise"
        return self.problem[1] if self.problem is not None and isinstance(self.problem[1], str) else ""


def intensity(flops: int, bytes: int) -> float:
    """FLOPs per byte; 0 of an empty batch."""
    return flops / bytes if bytes else 0.0


def survey(model: nn.Module, sample: object, function: str) -> tuple[list[Layer], list[Site]]:
    """The layers of an inference of `sample` by the unpatched model, as they ran, and the model's sites; `function` is
    who asks."""
    require_model(model, function)
    with patch.put_back(model), inference(model):
        names = {module: fqn for fqn, module in patch.unpatch(model).named_modules()}
        inputs = copied(sample)
        recorder = _Recorder(names, tensors_of(inputs))
        call(model, inputs, recorder)  # which gives lazy modules their weights
        found = capture(model, lambda fqn, module: True)
        sites_of = _sites_of(found, names)
        tuned = _tuned(model, found, sample)
    seen, layers = Counter(), []
    for layer in recorder.layers:
        sites = sites_of.get(layer.name, (None,))
        site = sites[seen[layer.name] % len(sites)]
        seen[layer.name] += 1
        layers.append(replace(layer, site=site, tuned=site and tuned.get(site.fqn)))
    return layers, found.sites


def _tuned(model: nn.Module, found: Capture, sample: object) -> dict[str, bool | None]:
    """Per site, by name, whether tuning found torch to be faster, or not."""
    device = tensors_of(sample)[0].device
    if engines.engine_for(device) is None:
        return {}

    def verdict(piece: trial.Piece) -> bool | None:
        inputs = [torch.empty_like(x, device=device) for x in piece.inputs]
        return choice.verdict(lambda: piece.ours(*inputs))

    return {fqn: verdict(piece) for fqn, piece in trial.pieces_of(model, found, sample).items()}


def _sites_of(found: Capture, names: Mapping[nn.Module, str]) -> dict[str, Sequence[Site | None]]:
    """Per name of a layer the sites, if any, that it is a part of, call by call of those that its caller makes."""
    listed = {(site.fqn, site.pattern): site for site in found.sites}
    sites_of = {}
    for root, forwards in found.forwards.items():  # the outermost first, which may look through others
        for trace, matches in forwards:
            if trace.training:
                continue
            covers, members, called = {}, {}, defaultdict(list)
            for match in matches:
                own = block_site(names, root, match)
                site = listed.get((own.fqn, own.pattern), own)
                members = dict.fromkeys(own.members, (site,)) | members
                covers |= dict.fromkeys(match.nodes, site)
            counts = defaultdict(Counter)
            for node in trace.graph.nodes:
                if node.op == "call_module":
                    called[names[root.get_submodule(node.target)]].append(covers.get(node))
                if node.op in ("call_function", "call_method"):
                    name = _plain(getattr(node.target, "__name__", node.target))
                    owner = root.get_submodule(owner_of(node))
                    if node in covers:
                        sites_of.setdefault(_join(names[owner], name, counts[owner][name]), (covers[node],))
                        if not owner._modules:  # which is a layer itself, and not its calls
                            sites_of.setdefault(names[owner], (covers[node],))
                    counts[owner][name] += 1
            sites_of = members | {name: sites for name, sites in called.items() if any(sites)} | sites_of
    return {member: (site,) for site in found.sites for member in site.members} | sites_of


def _plain(name: str) -> str:
    name = name.strip("_").removesuffix("_with_indices")
    return _NAMES.get(name, name)


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
        self.leaf: list[tuple[int, Problem | None]] | None = None  # FLOPs and problem of what it has run

    def __enter__(self):
        hookable = [module for module in self.names if not isinstance(module, torch.jit.ScriptModule)]
        self.hooks = [module.register_forward_pre_hook(self._begin) for module in hookable]
        self.hooks += [module.register_forward_hook(self._end, with_kwargs=True) for module in hookable]
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
            problem = next((problem for _, problem in self.leaf if problem is not None), None)
            self._add(name, type(module).__name__, inputs, own, outputs, sum(n for n, _ in self.leaf), problem)
            self.leaf = None

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        name = _plain(func.overloadpacket.__name__)
        inputs = tensors_of((args, kwargs))
        problem = _PROBLEMS[name](*args) if name in _PROBLEMS else None
        output = func(*args, **kwargs)
        outputs = tensors_of(output)
        self.fields.follow(name, args, inputs, outputs)
        count = flop_registry.get(func.overloadpacket)
        flops = count(*args, **kwargs, out_val=output) if count else 0
        if self.leaf is not None:
            self.leaf.append((flops, problem))
        elif not func.is_view:
            caller, counts = self.callers[-1]
            self._add(_join(caller, name, counts[name]), name, inputs, [], outputs, flops, problem)
            counts[name] += 1
        return output

    def _add(self, name, kind, inputs, own, outputs, flops, problem) -> None:
        if not inputs or not outputs:
            return
        input, output = inputs[0], outputs[0]
        parameters = sum(value.numel() for value in own if isinstance(value, nn.Parameter))
        moved = sum(value.numel() * value.itemsize for value in (*inputs, *own, *outputs))
        shapes = tuple(input.shape), tuple(output.shape)
        where, field = (input.dtype, input.device), self.fields.of([output])
        counted = parameters, flops, moved
        self.layers.append(Layer(name, kind, *shapes, *where, *counted, field, problem, nhwc=is_nhwc(input)))


def _convolution(input, weight, bias, stride, padding, dilation, transposed, output_padding, groups):
    if transposed:
        options = stride, padding, output_padding, groups, dilation
        if weight.dim() == 3:
            sizes = (value if isinstance(value, int) else tuple(value) for value in options)
            return "dgrad", conv_transpose.geometry_1d(input, weight, bias, *sizes)
        return "dgrad", conv_transpose.geometry_of(input, weight, bias, *options)
    if weight.dim() == 3:
        return "fprop", conv1d.geometry_1d(input, weight, bias, *map(tuple, (stride, padding, dilation)), groups)
    return "fprop", conv.geometry_of(input, weight, bias, stride, padding, dilation, groups)


def _max_pool(input, kernel_size, stride=None, padding=0, dilation=1, ceil_mode=False):
    return "max_pool", pool.geometry_of(input, kernel_size, stride, padding, dilation, ceil_mode)


def _avg_pool(input, kernel_size, stride=None, padding=0, ceil_mode=False, *_):
    geometry = pool.geometry_of(input, kernel_size, stride, padding, 1, ceil_mode)
    return None if isinstance(geometry, PoolGeometry) and geometry.is_global else ("avg_pool", geometry)


def _norm(input, *_):
    return "norm_apply", NormGeometry(input.numel() // input.shape[1], input.shape[1])


def _group_norm(input, weight, bias, N, C, pixels, groups, eps):
    return "norm_apply", GroupGeometry(pixels, C, N, not is_nhwc(input), groups)


# What kernels are chosen by: the operation, and its geometry or why torch runs it.
_PROBLEMS: dict[str, Callable[..., Problem | None]] = {
    "convolution": _convolution,
    "max_pool2d": _max_pool,
    "avg_pool2d": _avg_pool,
    "native_batch_norm": _norm,
    "native_batch_norm_legit_no_training": _norm,
    "cudnn_batch_norm": _norm,
    "native_group_norm": _group_norm,
}
