"""Patched models under torch's tools for training: each trains as an unpatched twin does, in float64."""

import pytest
import torch
import torch.nn.functional as F
from networks import NET_SITES, Net, sample, sgd, statuses, trained, twins
from torch import nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper
from torch.nn.utils import parametrizations, parametrize, prune
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn, update_bn
from torch.utils.checkpoint import checkpoint, checkpoint_sequential

import tritonconv

assert_close = torch.testing.assert_close


def adamw(model):
    return torch.optim.AdamW(model.parameters(), lr=0.1)


@pytest.mark.parametrize("optimizer", [sgd, adamw])
def test_an_optimizer_made_before_patching(optimizer):
    patched, plain = twins()
    made = optimizer(tritonconv.unpatch(patched))
    assert_close(trained(tritonconv.patch(patched), made), trained(plain, optimizer(plain)))


def test_patching_and_unpatching_between_steps():
    patched, plain = twins()
    ours, theirs = sgd(patched), sgd(plain)
    for change in (lambda model: model, tritonconv.unpatch, tritonconv.patch):
        assert_close(trained(change(patched), ours), trained(plain, theirs))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_step_under_autocast_and_a_gradient_scaler(dtype):
    """Everything has torch's dtype and strides, and is as near to the step in float64 as torch's is."""

    def step(model, dtype):
        optimizer, scaler = sgd(model), torch.amp.GradScaler("cpu", enabled=dtype is torch.float16)
        with torch.autocast("cpu", dtype, enabled=dtype is not torch.float64):
            y = model(sample(dtype=next(model.parameters()).dtype))
            loss = F.cross_entropy(y, torch.tensor([0, 2]))
        scaler.scale(loss).backward()
        scaler.step(optimizer)  # divides the gradients by the scale before
        scaler.update()
        return [y.detach(), loss.detach(), *(p.grad for p in model.parameters()), *model.state_dict().values()]

    ours, theirs = (step(model, dtype) for model in twins(torch.float32))
    exact = step(twins()[1], torch.float64)
    errors = []
    for got, want, truth in zip(ours, theirs, exact, strict=True):
        assert (got.dtype, got.stride()) == (want.dtype, want.stride())
        errors.append([float((value - truth).double().square().sum()) for value in (got, want)])
    error, reference = torch.tensor(errors, dtype=torch.float64).sum(0).sqrt().tolist()
    assert 0 < error <= 2 * reference


@pytest.mark.parametrize("reentrant", [True, False])
def test_activation_checkpointing(reentrant):
    """Statistics are updated twice, as in torch: once more when the forward is repeated."""

    def whole(model):
        return lambda x: checkpoint(model, x.requires_grad_(), use_reentrant=reentrant)

    def blocks(model):
        def forward(x):
            x = checkpoint_sequential(model.stem, 2, x.requires_grad_(), use_reentrant=reentrant)
            return model.head(checkpoint(model.pool, x, use_reentrant=reentrant)).mean((2, 3))

        return forward

    for forward in (whole, blocks):
        patched, plain = twins()
        assert_close(trained(patched, forward=forward(patched)), trained(plain, forward=forward(plain)))


def test_a_checkpoint_wrapper_around_a_block():
    patched, plain = twins()
    for model in (patched, plain):
        model.stem = checkpoint_wrapper(model.stem)
    assert_close(trained(patched), trained(plain))


def test_a_moving_average_of_weights_and_its_statistics():
    def averaged(model):
        average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.9))
        for _ in range(2):
            trained(model)
            average.update_parameters(model)
        update_bn([sample(1), sample(2)], average)
        with torch.no_grad():
            return [average.eval()(sample()), *average.state_dict().values()]

    patched, plain = twins()
    assert_close(averaged(patched), averaged(plain))


def test_synchronized_norms_take_the_place_of_fused_ones():
    patched, plain = map(nn.SyncBatchNorm.convert_sync_batchnorm, twins())
    with torch.no_grad():  # in training they refuse what is not on a GPU
        assert_close(patched.eval()(sample()), plain.eval()(sample()))
    assert {site.status for site in tritonconv.report(tritonconv.patch(patched))} == {"swapped"}
    assert type(tritonconv.unpatch(patched)) is Net


def test_hooks_of_parameters():
    def seen_by_hooks(model):
        seen = {}
        for name, parameter in model.named_parameters():
            parameter.register_hook(lambda gradient, name=name: seen.update({name: gradient.clone()}))
            parameter.register_post_accumulate_grad_hook(lambda p, name=name: seen.update({name + "+": p.grad.clone()}))
        trained(model)
        return seen

    patched, plain = twins()
    assert_close(seen_by_hooks(patched), seen_by_hooks(plain))


PARAMETRIZED = {
    "weight_norm": (parametrizations.weight_norm, lambda conv: parametrize.remove_parametrizations(conv, "weight")),
    "spectral_norm": (parametrizations.spectral_norm, lambda conv: parametrize.remove_parametrizations(conv, "weight")),
    "weight_norm of old": (nn.utils.weight_norm, nn.utils.remove_weight_norm),
    "spectral_norm of old": (nn.utils.spectral_norm, nn.utils.remove_spectral_norm),
    "prune": (lambda conv: prune.l1_unstructured(conv, "weight", 0.5), lambda conv: prune.remove(conv, "weight")),
}


@pytest.mark.filterwarnings("ignore:.torch.nn.utils.(weight|spectral)_norm")
@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("kind", PARAMETRIZED)
def test_weights_that_are_computed_at_every_call(kind, when):
    """Set before or after patching, trained, used, removed, patched again."""
    patched, plain = twins()
    change, remove = PARAMETRIZED[kind]
    if when == "before":
        tritonconv.unpatch(patched)
    results = []
    for model in (patched, plain):
        torch.manual_seed(0)  # of spectral_norm's vectors
        for conv in (model.conv, model.stem[0]):
            change(conv)
        if model is patched and when == "before":
            tritonconv.patch(model)
        results.append(trained(model))
        with torch.no_grad():
            results[-1] += [model.eval()(sample()), model(sample()), model.train()(sample())]
        results[-1] += trained(model)
    assert_close(*results)
    for model in (patched, plain):
        for conv in (model.conv, model.stem[0]):
            remove(conv)
    with torch.no_grad():
        assert_close(patched.eval()(sample()), plain.eval()(sample()))
    tritonconv.patch(patched)
    assert statuses(patched) == NET_SITES
    assert_close(trained(patched.train()), trained(plain.train()))
    tritonconv.unpatch(patched)
    assert [type(module) for module in patched.modules()] == [type(module) for module in plain.modules()]
