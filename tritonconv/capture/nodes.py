"""What a node of a traced forward computes: an activation, a pooling, batch norm, padding …"""

import inspect
import operator

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from ..blocks.modules import ACTIVATION_MODULES, POOLS, activation_text
from ..ops.activations import PRELU

# How a graph calls them: functions, and methods by their name.
WITH_INDICES = {
    getattr(F, f"{name}_with_indices"): name
    for name in ("max_pool1d", "max_pool2d", "adaptive_max_pool1d", "adaptive_max_pool2d")
}
POOL_CALLS = {getattr(F, name): name for name in POOLS.values()} | WITH_INDICES
POOL_CALLS |= {torch.max_pool1d: "max_pool1d", torch.max_pool2d: "max_pool2d"}
CONV_CALLS = {F.conv1d: "conv1d", F.conv2d: "conv2d", torch.conv1d: "conv1d", torch.conv2d: "conv2d"}
PADDING = 4  # its place among their arguments
# The batch norm that goes with a convolution.
NORMS = {
    **dict.fromkeys((nn.Conv1d, nn.ConvTranspose1d), nn.BatchNorm1d),
    **dict.fromkeys((nn.Conv2d, nn.ConvTranspose2d), nn.BatchNorm2d),
}
ADD_CALLS = {operator.add, operator.iadd, torch.add, "add", "add_"}
IN_PLACE_ADDS = {operator.iadd, "add_"}
ACTIVATION_CALLS = {
    **dict.fromkeys((F.relu, torch.relu, torch.relu_, "relu", "relu_"), "relu"),
    **dict.fromkeys((F.sigmoid, torch.sigmoid, torch.sigmoid_, "sigmoid", "sigmoid_"), "sigmoid"),
    **dict.fromkeys((F.tanh, torch.tanh, torch.tanh_, "tanh", "tanh_"), "tanh"),
    F.relu6: "relu6",
    F.hardsigmoid: "hardsigmoid",
    F.silu: "silu",
    F.hardswish: "hardswish",
    F.gelu: "gelu",
    F.leaky_relu: "leaky_relu",
    F.elu: "elu",
}
_MULTIPLICATIONS = {operator.mul, torch.mul, "mul"}
# What may be computed from parameters before its turn.
_PURE = {
    "call_function": {operator.add, operator.sub, operator.mul, operator.truediv, torch.rsqrt, torch.sqrt},
    "call_method": {"reshape", "view", "rsqrt", "sqrt", "add", "sub", "mul", "div"},
}
_PRELU_CALLS = {F.prelu, "prelu"}
# The functions that normalize by parameters and buffers, and how they are called.
_NORM_CALLS = {function: inspect.signature(function) for function in (F.batch_norm, F.group_norm, F.instance_norm)}
_CONSTANT = bool, int, float, type(None)
_NUMBERS = {"leaky_relu": "negative_slope", "elu": "alpha"}


def activation_of(module: nn.Module, node: fx.Node) -> str | None:
    """The text of the activation that `node` calls; None if it calls none that kernels know."""
    if node.op == "call_module":
        child = module.get_submodule(node.target)
        text = activation_text(child) if type(child) in ACTIVATION_MODULES else None
        return PRELU if isinstance(text, Tensor) else text or None
    if node.target in _PRELU_CALLS:
        return PRELU if slopes_of(node) is not None else None
    if node.op not in ("call_function", "call_method") or (name := ACTIVATION_CALLS.get(node.target)) is None:
        return None
    given = {key: value for key, value in node.kwargs.items() if key not in ("input", "inplace")}
    number = node.args[1] if name in _NUMBERS and len(node.args) > 1 else given.pop(_NUMBERS.get(name), None)
    if name == "gelu" and given.pop("approximate", "none") == "tanh":
        name = "gelu_tanh"
    if given or isinstance(number, fx.Node):
        return None
    return activation_text(name if number is None else f"{name}({number})") or None


def is_activated_copy(module: nn.Module, node: fx.Node) -> bool:
    """Whether `node` calls such an activation, which does not work in place."""
    if activation_of(module, node) is None:
        return False
    if node.op == "call_module":
        return not getattr(module.get_submodule(node.target), "inplace", False)
    name = node.target if node.op == "call_method" else node.target.__name__
    return len(node.args) <= 1 + (name in _NUMBERS) and not node.kwargs.get("inplace") and not name.endswith("_")


def slopes_of(node: fx.Node) -> str | None:
    """The path of the parameter that a call of PReLU takes for its slopes."""
    given = dict(zip(("input", "weight"), node.args, strict=False)) | node.kwargs
    weight = given["weight"]
    return weight.target if isinstance(weight, fx.Node) and weight.op == "get_attr" else None


def norm_of(node: fx.Node) -> tuple[str, tuple] | None:
    """The name of the norm's function that `node` calls, and what it hands to that after the input, if that is numbers,
    and tensors that are the modules' own."""
    if node.op != "call_function" or node.target not in _NORM_CALLS or not node.args:
        return None
    bound = _NORM_CALLS[node.target].bind(*node.args, **node.kwargs)
    bound.apply_defaults()
    _, *given = bound.args
    own = all(value.op == "get_attr" if isinstance(value, fx.Node) else isinstance(value, _CONSTANT) for value in given)
    return (node.target.__name__, tuple(given)) if own else None


def batch_norm_of(node: fx.Node) -> tuple | None:
    """What `node` hands to F.batch_norm after the input, if it calls that."""
    function, arguments = norm_of(node) or (None, ())
    return arguments if function == "batch_norm" else None


def scale_and_shift(node: fx.Node, value: fx.Node) -> tuple[fx.Node, fx.Node, fx.Node] | None:
    """The scale, the shift and the addition if `node` multiplies `value` by one, and all that follows adds the other,
    both of parameters and buffers alone: batch norm as those write it who freeze it."""
    scale = _other(node, value, _MULTIPLICATIONS)
    if scale is None or len(node.users) != 1:
        return None
    (addition,) = node.users
    shift = _other(addition, node, ADD_CALLS - IN_PLACE_ADDS)
    return None if shift is None else (scale, shift, addition)


def _other(node: fx.Node, value: fx.Node, calls: set) -> fx.Node | None:
    if node.target not in calls or len(node.args) != 2 or node.kwargs or value not in node.args:
        return None
    other = node.args[1] if node.args[0] is value else node.args[0]
    return other if isinstance(other, fx.Node) and constants_of(other) is not None else None


def constants_of(node: fx.Node) -> list[fx.Node] | None:
    """The calls that `node` is computed by, itself the last, if it is from parameters and buffers alone that nothing in
    the graph writes to."""
    if node.op == "get_attr":
        others = [n for n in node.graph.find_nodes(op="get_attr") if n.target == node.target]
        return [] if all(map(_is_pure, (user for other in others for user in other.users))) else None
    if not _is_pure(node):
        return None
    parts = [constants_of(source) for source in node.all_input_nodes]
    return None if None in parts else [*dict.fromkeys(part for each in parts for part in each), node]


def asks_dimensions(node: fx.Node) -> bool:
    """Whether it asks how many dimensions a value has."""
    if node.op == "call_method":
        return node.target in ("dim", "ndimension") and len(node.args) == 1
    return node.op == "call_function" and node.target is getattr and node.args[1:] == ("ndim",)


def changes_nothing(node: fx.Node) -> bool:
    """Whether all it can look at is parameters, buffers and numbers of dimensions."""
    return constants_of(node) is not None or _is_of_dimensions(node)


def _is_of_dimensions(node: fx.Node) -> bool:
    if asks_dimensions(node):
        return True
    called = node.op in ("call_function", "call_method") and bool(node.all_input_nodes)
    return called and all(map(_is_of_dimensions, node.all_input_nodes))


def _is_pure(node: fx.Node) -> bool:
    return bool(node.all_input_nodes) and node.target in _PURE.get(node.op, ())


def is_max_pooling(module: nn.Module, node: fx.Node) -> bool:
    if node.op == "call_module":
        return type(module.get_submodule(node.target)) is nn.MaxPool2d
    return node.op == "call_function" and POOL_CALLS.get(node.target) == "max_pool2d"


def convolves_with_parameter(node: fx.Node) -> bool:
    """Whether it convolves with the module's own weight, as a subclass does in its forward."""
    weight = node.args[1] if len(node.args) > 1 else node.kwargs.get("weight")
    return isinstance(weight, fx.Node) and weight.op == "get_attr"


def padding_argument(node: fx.Node) -> object:
    """What a call of a convolution has for its `padding`."""
    return node.args[PADDING] if len(node.args) > PADDING else node.kwargs.get("padding", 0)


def padding_of(node: fx.Node, function: str) -> tuple[int, ...] | None:
    """The zeros that `node` pads by, as `F.pad` has it, before convolutions by this function; None if it does something
    else."""
    if node.op != "call_function" or node.target is not F.pad:
        return None
    given = dict(zip(("input", "pad", "mode", "value"), node.args, strict=False)) | node.kwargs
    pad = given["pad"]
    plain = given.get("mode", "constant") == "constant" and given.get("value") in (None, 0)
    sizes = (2,) if function == "conv1d" else (2, 4)
    ints = isinstance(pad, (tuple, list)) and len(pad) in sizes and all(type(n) is int and n >= 0 for n in pad)
    return tuple(pad) if plain and ints else None
