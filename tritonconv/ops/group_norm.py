"""Group norm and instance norm with autograd, with an activation after them; what is kept for gradients is as in batch
norm."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ..launch import group_norm as launch
from ..launch.norm import Norm, empty_statistics, moments
from .epilogue import divided, finish, prepared, suits
from .interior import is_inside
from .library import Operator, opaque
from .norm import image, normalize, of_channels, unsupported, update
from .support import is_channels_last, nchw, operand, unsupported_call, unsupported_operands


class GroupMoments(Operator):
    """Mean and biased variance, for each channel of the groups of each image of x: [N, groups, C / groups]."""

    schema = "group_moments(Tensor x, int groups) -> (Tensor mean, Tensor var)"

    @staticmethod
    def run(x, groups):
        return launch.finalize(moments(x, groups=groups), len(x), groups)

    @staticmethod
    def fake(x, groups):
        return empty_statistics(x, x.shape[0], groups, x.shape[1] // groups)


def _unsupported_groups(x: Tensor, groups: int, affine: tuple[Tensor | None, ...]) -> bool:
    """Whether torch has to normalize x in so many groups, by these tensors of [C] or None."""
    given = [t for t in affine if t is not None]
    if unsupported_call(x, *given) is not None or unsupported_operands(operand(x)) is not None or x.dim() != 4:
        return True
    N, C, H, W = x.shape
    if type(groups) is not int or groups < 1 or C % groups:
        return True
    # Of one value in all there is no variance: torch raises.
    return N * (C // groups) * H * W < 2 or not of_channels(given, C, x, mixed=x.device.type == "cpu")


@opaque
def group_norm(input, num_groups, weight, bias, eps, activation=None, keeps_format=False) -> Tensor:
    """See `tritonconv.functional.group_norm`."""
    activation = prepared(activation, input)
    input, weight, bias = _as_torch_casts(input, weight, bias)
    x = image(input)
    if _unsupported_groups(x, num_groups, (weight, bias)):
        return finish(F.group_norm(input, num_groups, weight, bias, eps), None, activation)
    norm = Norm(*GroupMoments.call(x.detach(), num_groups), weight, bias, eps)
    return _finished(input, x, norm, True, activation, keeps_format or x.device.type == "cpu")


@opaque
def instance_norm(
    input, running_mean, running_var, weight, bias, use_input_stats, momentum, eps, activation=None, keeps_format=False
) -> Tensor:
    """See `tritonconv.functional.instance_norm`."""
    activation = prepared(activation, input)
    x, running = image(input), (running_mean, running_var)
    if unsupported(x.shape, x, use_input_stats, running, (weight, bias)) or _is_pixel(x, use_input_stats):
        y = F.instance_norm(input, *running, weight, bias, use_input_stats, momentum, eps)
        return finish(y, None, activation)
    norm = Norm(*running, weight, bias, eps)
    if use_input_stats:
        mean, var = GroupMoments.call(x.detach(), x.shape[1])
        if running_mean is not None:
            update(*running, mean.mean((0, 2)), var.mean((0, 2)), x.shape[2] * x.shape[3], momentum)
        norm = norm._replace(mean=mean, var=var)
    return _finished(input, x, norm, use_input_stats, activation, keeps_format)


def _is_pixel(x: Tensor, use_input_stats: bool) -> bool:
    """Whether statistics are asked of images of one pixel: torch raises."""
    return use_input_stats and x.shape[2] * x.shape[3] < 2


def _finished(input: Tensor, x: Tensor, norm: Norm, batch: bool, activation, keeps_format: bool) -> Tensor:
    """activation(norm(x)) as what `input` becomes, in its memory format or else, as torch's own, in NCHW, where that
    is seen."""
    (_, ours), (_, left) = divided(None, activation, True, suits(activation, x.shape[1], x, True))
    y = normalize(x, norm, batch, None, ours)
    y = nchw(y) if is_channels_last(y) and not (keeps_format or is_inside()) else y
    return finish(y if x is input else y.view(input.shape), None, left)


def _as_torch_casts(*tensors: Tensor | None) -> tuple[Tensor | None, ...]:
    """The tensors as autocast on GPUs hands them to group norm: in float32."""
    device = tensors[0].device.type
    if device == "cpu" or not (torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device)):
        return tensors
    return tuple(t if t is None or t.dtype.itemsize != 2 else t.float() for t in tensors)
