"""Norms with autograd, with a residual and an activation after them, and batch norm.

What a normalization keeps for its gradient is its input; the argument of its activation is computed again from that.
With a residual it also keeps that, or what makes it again, or else its own result: what is kept anyway, if it can be.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn import Parameter

from ..launch import group_norm
from ..launch import norm as launch
from ..launch.common import accumulator_of
from ..launch.norm import Norm
from . import activations
from .again import Recipe, is_kept, recipe_before, restored
from .epilogue import activated, divided, finish, prepared, suits
from .library import Operator, opaque
from .support import fits, is_channels_last, is_stand_in, operand, unsupported_call, unsupported_operands


class BatchMoments(Operator):
    """Mean and biased variance of x per channel."""

    schema = "batch_moments(Tensor x) -> (Tensor mean, Tensor var)"

    @staticmethod
    def run(x):
        return launch.finalize(launch.moments(x), x.numel() // x.shape[1])

    @staticmethod
    def fake(x):
        return launch.empty_statistics(x, x.shape[1])


class Normalize(Operator):
    """activation(norm(x) + residual). `batch`: whether the statistics, [C] or, of each image by itself,
    [N, groups, C / groups], are those of x, and hence have gradients."""

    schema = (
        "normalize(Tensor x, Tensor? weight, Tensor? bias, Tensor mean, Tensor var, Tensor? residual, float eps,"
        " str? activation, bool batch) -> Tensor"
    )

    @staticmethod
    def run(x, weight, bias, mean, var, residual, eps, activation, batch):
        return launch.apply(x, Norm(mean, var, weight, bias, eps), residual, activation)

    @staticmethod
    def fake(x, *_):
        return launch.empty_result(x)

    @staticmethod
    def save(ctx, inputs, y):
        x, weight, bias, mean, var, residual, *settings = inputs
        ctx.eps, ctx.activation, ctx.batch = settings
        ctx.before = recipe_before(residual)
        tells = ctx.activation is not None and activations.is_monotone(ctx.activation)
        has_result = tells and residual is not None and ctx.before is None and not is_kept(residual)
        needs_argument = ctx.activation is not None and not has_result
        added = ctx.before.leaves() if ctx.before else [residual]
        made_of = (bias, *added) if needs_argument else (None, None)
        ctx.save_for_backward(x, y if has_result else None, weight, mean, var, *made_of)
        parts = x, weight, bias, mean, var, *([] if ctx.before else added)
        ctx.recipe = None if has_result else Recipe.of(Normalize, y, parts, ctx.before, settings)

    @staticmethod
    def backward(ctx, dy):
        x, y, weight, mean, var, bias, *added = ctx.saved_tensors
        _, needs_weight, needs_bias, _, _, needs_residual = ctx.needs_input_grad[:6]
        made = ctx.recipe.taken() if ctx.recipe else None
        if made is not None and not torch.is_grad_enabled() and activations.is_monotone(ctx.activation):
            y = made
        residual = restored(ctx.before, added) if y is None and ctx.activation else None
        given = y, x, weight, bias, residual, mean, var, ctx.eps, ctx.activation
        if torch.is_grad_enabled():
            dx, da, dweight, dbias = _differentiable_backward(dy, *given, ctx.batch)
        else:
            needs_sums = ctx.batch or needs_weight or needs_bias
            dx, *rest = NormalizeBackward.call(dy, *given, needs_residual, needs_sums, ctx.batch)
            da = rest.pop(0) if needs_residual else None
            dbias, dweight = rest.pop().unbind() if needs_sums else (None, None)
        dweight = dweight.to(weight.dtype) if needs_weight else None
        dbias = dbias.to(dy.dtype if weight is None else weight.dtype) if needs_bias else None
        return dx, dweight, dbias, None, None, da if needs_residual else None, *(None,) * 3


class NormalizeBackward(Operator):
    """The gradient of x in `Normalize`, then, where needed, that of the residual, and [2, C]: of bias and weight."""

    schema = (
        "normalize_backward(Tensor dy, Tensor? y, Tensor x, Tensor? weight, Tensor? bias, Tensor? residual,"
        " Tensor mean, Tensor var, float eps, str? activation, bool needs_residual, bool needs_sums, bool batch)"
        " -> Tensor[]"
    )

    @staticmethod
    def run(dy, y, x, weight, bias, residual, mean, var, eps, activation, needs_residual, needs_sums, batch):
        norm = Norm(mean, var, weight, bias, eps)
        x, dy, y, residual = launch.laid(x, x, dy, y, residual)
        given = dy, y, x, norm, residual, activation
        sums = launch.backward_sums(*given) if needs_sums else None
        of_statistics = sums if batch else None
        if norm.groups:
            of_statistics = group_norm.means(sums, weight, x.shape[2] * x.shape[3], norm.groups)
            sums = sums.sum(0) if len(sums) > 1 else sums[0]
        gradients = *launch.backward(*given, needs_residual, of_statistics), sums
        return [gradient for gradient in gradients if gradient is not None]

    @staticmethod
    def fake(dy, y, x, weight, bias, residual, mean, var, eps, activation, needs_residual, needs_sums, batch):
        images = [launch.empty_result(x) for _ in range(1 + needs_residual)]
        return images + [mean.new_empty((2, x.shape[1]), dtype=accumulator_of(x))] * needs_sums


def _differentiable_backward(
    dy, y, x, weight, bias, residual, mean, var, eps, activation, batch
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients of x, residual, weight and bias, in torch's functions, for derivatives of a higher order."""
    wide, axes = mean.dtype, (0, 2, 3)
    x = x.to(wide)
    if mean.dim() == 3:  # [N, groups, channels of a group, H, W]
        x, over = x.unflatten(1, (mean.shape[1], -1)), (2, 3, 4)
    else:
        over = axes
    if batch:
        mean = x.mean(over, keepdim=True)
        var = (x - mean).square().mean(over, keepdim=True)
    else:
        mean, var = (t.to(wide)[:, None, None] for t in (mean, var))
    rstd = (var + eps).rsqrt()
    grouped = (x - mean) * rstd
    normal = grouped.view(dy.shape)
    da = dy
    if activation:
        if y is None:
            argument = _affine(normal, weight, bias)
            argument = argument if residual is None else argument + residual.to(wide)
            da = activations.gradient_at(activation, dy, argument.to(dy.dtype))
        else:
            da = activations.activation(activation).backward(dy, y)
    dweight, dbias = (da.to(wide) * normal).sum(axes), da.to(wide).sum(axes)
    dx = _affine(da.to(wide), weight, None).view(grouped.shape)
    if batch:
        dx = dx - dx.mean(over, keepdim=True) - grouped * (dx * grouped).mean(over, keepdim=True)
    return (dx * rstd).view(dy.shape).to(dy.dtype), da, dweight, dbias


def _affine(x: Tensor, weight: Tensor | None, bias: Tensor | None) -> Tensor:
    x = x if weight is None else x * weight.to(x.dtype)[:, None, None]
    return x if bias is None else x + bias.to(x.dtype)[:, None, None]


def unsupported(shape: tuple[int, ...], x: Tensor, training: bool, statistics, affine) -> bool:
    """Whether torch has to normalize what has this shape and the dtype of x, by these tensors of [C] or None."""
    given = [t for t in (*statistics, *affine) if t is not None]
    if unsupported_call(x, *given) is not None or unsupported_operands(operand(x)) is not None or len(shape) != 4:
        return True
    if (statistics[0] is None) != (statistics[1] is None) or not (training or statistics[0] is not None):
        return True
    N, C, H, W = shape
    least = 2 if training else 1  # of one value there is no variance: torch raises
    return least > N * H * W or C == 0 or not of_channels(given, C, x)


def of_channels(given: Sequence[Tensor], C: int, x: Tensor, mixed: bool = True) -> bool:
    """Whether these are vectors [C] for the norm of what is like x. Beside a half type they may be float32, as under
    autocast, if `mixed`."""
    dtypes = {x.dtype, torch.float32} if mixed and x.dtype.itemsize == 2 else {x.dtype}
    alike = all(t.shape == (C,) and t.dtype in dtypes and t.device == x.device for t in given)
    return alike and len({t.dtype for t in given}) <= 1


def update(running_mean: Tensor | None, running_var: Tensor | None, mean, var, count: int, momentum: float) -> None:
    if running_mean is None:
        return
    with torch.no_grad():
        running_mean.mul_(1 - momentum).add_(mean, alpha=momentum)
        running_var.mul_(1 - momentum).add_(var, alpha=momentum * count / (count - 1))  # unbiased


def normalize(y: Tensor, norm: Norm, batch: bool, residual, activation) -> Tensor:
    """activation(norm(y) + residual) by given statistics, `batch` if they are those of y. y, and the residual, are
    [N, C, H, W]."""
    mean, var, weight, bias, eps, _ = norm
    if isinstance(activation, Tensor):
        return activated(Normalize.call(y, weight, bias, mean, var, residual, eps, None, batch), activation)
    return Normalize.call(y, weight, bias, mean, var, residual, eps, activation, batch)


@opaque
def batch_norm(
    input, running_mean, running_var, weight, bias, training, momentum, eps, residual=None, activation=None
) -> Tensor:
    """See `tritonconv.functional.batch_norm`."""
    activation = prepared(activation, input)
    x = image(input)
    if unsupported(x.shape, x, training, (running_mean, running_var), (weight, bias)):
        y = F.batch_norm(input, running_mean, running_var, weight, bias, training, momentum, eps)
        return finish(y, residual, activation)
    alike = residual is not None and residual.shape == input.shape
    adds = residual is None or (alike and fits(image(residual), x.shape, x, is_channels_last(x)))
    (added, ours), left = divided(residual, activation, adds, suits(activation, x.shape[1], x, True))
    norm = Norm(running_mean, running_var, weight, bias, eps)
    if training:
        norm = of_batch(norm, *BatchMoments.call(x.detach()), x.numel() // x.shape[1], momentum)
    y = normalize(x, norm, training, None if added is None else image(added), ours)
    return finish(y if x is input else y.view(input.shape), *left)  # a view may have other strides where sizes are 1


def image(x: Tensor) -> Tensor:
    """[N, C, H, W]; of [N, C] and [N, C, L] a view as such."""
    plain = type(x) in (Tensor, Parameter) or is_stand_in(x)
    if not plain or x.layout is not torch.strided or x.dim() not in (2, 3):
        return x
    x = x.contiguous()  # as torch's result is, whatever the strides of its input
    return x.unsqueeze(-2) if x.dim() == 3 else x[:, :, None, None]


def of_batch(norm: Norm, mean: Tensor, var: Tensor, count: int, momentum: float) -> Norm:
    """`norm` by the statistics of `count` pixels; the running ones, which it had, are updated."""
    update(norm.mean, norm.var, mean, var, count, momentum)
    return norm._replace(mean=mean, var=var)
