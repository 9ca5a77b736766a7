"""`patch(model)` and what undoes and shows it.

Patching rewrites what is computed and not the modules: children, parameters, buffers, `state_dict` keys and hooks stay
what and where they are, so optimizers, checkpoints and averaged copies do not notice. Two things happen, in place:

1. Every supported convolution, pooling and dropout module is swapped: its own forward runs one kernel. That needs
   nothing to be known about its surroundings.
2. A forward in which a fusable pattern was found (`capture`) is rewritten, for the module that has it.

Where the second does not hold for a call (a child was replaced, an attribute changed that the forward branches on, an
optional input was given that is no tensor), the module's own forward runs, on the swapped children of the first. Where
a hook wants a value inside a pattern, the modules of the pattern run one by one. So what could be fused never changes
the result.
"""

import warnings
import weakref
from collections.abc import Container, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from itertools import chain
from typing import Literal

import torch
from torch import nn

from .. import replay
from ..blocks.modules import intercepted
from ..capture.sites import EXCLUDED, Capture, capture
from ..choice import preference
from ..launch.room import results
from . import interior, memory, swap, training, trial
from .checks import Accept, Globs, require_model, require_module
from .reporting import Report, Site
from .rewrite import rewrite


def patch(
    model: nn.Module,
    sample: object = None,
    *,
    include: str | Iterable[str] = "*",
    exclude: str | Iterable[str] = (),
    filter_fn: Accept | None = None,
    when: Literal["faster", "always"] | None = None,
    memory_format: torch.memory_format = torch.preserve_format,
    strict: bool = False,
) -> nn.Module:
    """Makes `model` run its convolutions, convolution+ReLU and pooling on fused Triton kernels, and returns it.

    In place, undone by `unpatch`; `report(model)` lists every site, and why if it was left alone. Patching again starts
    over. Parameters and `state_dict` are untouched. Patch before wrapping (torch.compile, DistributedDataParallel).

    sample: the model's input, a tuple of its inputs, or a dict of them by name. It is run as inference, with everything
        put back afterwards; unless the patched model then gives what the unpatched gave, up to half of the digits,
        `RuntimeError` names the site, and `model` is left unpatched.
    include, exclude: glob patterns over the sites' names, such as "features.*". A site is patched if it matches one of
        `include` and none of `exclude`.
    filter_fn: `filter_fn(fqn, module) -> bool`; False leaves the site alone.
    when: "faster" leaves a site to torch if it is not faster on the sample: each is timed, in inference, for a few
        seconds in all, beside what it takes to compile. If the model is in training mode, and can train on the
        sample, calls are timed with their gradients, too: what torch does faster it does in training. "always" takes
        every site that has a kernel. By default "faster" with a sample, and "always" without one, on which nothing
        could be timed.
    memory_format: `torch.channels_last` converts weights that are in NCHW memory now, and the model's inputs of four
        dimensions at every call; so the outputs have the strides that an unpatched model in this format gives. A model
        that stays in NCHW memory is about as fast where its forwards can be traced: between its blocks it leaves that.
    strict: raise `ValueError` with all the reasons, and leave `model` unpatched, if any site that was not excluded
        cannot be patched or there is no site at all. Otherwise a model without any patched site is warned about.

    Raises `TypeError` if `model` is no module, or a wrapper around the model, and `ValueError` if it cannot run the
    sample.
    """
    require_model(model, "patch")
    if when not in ("faster", "always", None):
        raise ValueError(f"patch: when must be 'faster' or 'always', got {when!r}")
    if when == "faster" and sample is None:
        raise ValueError("patch: when='faster' needs a sample to time the sites on")
    if memory_format not in (torch.preserve_format, torch.channels_last):
        raise ValueError(f"patch: memory_format must be preserve_format or channels_last of torch, got {memory_format}")
    accept = Globs(include, exclude, filter_fn)
    unpatch(model)
    if sample is not None:
        with trial.inference(model):
            expected = trial.call(model, trial.copied(sample))  # which gives lazy modules their weights
        trial.require_engine(sample)
    found = capture(model, accept)
    _complain(_report_of(model, found), strict)
    names = {name for site in (*found.sites, *found.rest) for name in (site.fqn, *site.members)}
    accept.warn_of_unused(names, swap.name_of(model))
    converted = frozenset()
    try:
        if memory_format is torch.channels_last:
            converted, sample = memory.arrange(model, memory_format), memory.arranged(sample, memory_format)
        if sample is not None and when != "always":
            found = _faster(model, found, accept, trial.speeds(model, found, sample))
        _install(model, found, memory_format, converted)
        if sample is not None:
            trial.compare(model, sample, expected, found.sites)
        if sample is not None and when != "always" and model.training:
            training.choose(model, sample)
    except BaseException:
        memory.put_back(unpatch(model), converted)
        raise
    weakref.finalize(model, results.release)
    return model


def _faster(model: nn.Module, found: Capture, accept: Accept, speeds: dict[str, float]) -> Capture:
    """The capture without the sites that are slower than torch, which then say so."""
    reasons = {
        member: f"not faster: {speeds[site.fqn]:.2f} of torch"
        for site in found.sites
        if speeds.get(site.fqn, 2) <= 1
        for member in (site.fqn, *site.members)
    }
    found = capture(model, lambda fqn, module: fqn not in reasons and accept(fqn, module))

    def explained(site: Site) -> Site:
        if site.status == "left":
            return replace(site, reason=reasons.get(site.fqn, site.reason))
        if site.fqn in speeds:
            return site
        return replace(site, reason="; ".join(filter(None, (site.reason, "not timed"))))

    return replace(found, sites=list(map(explained, found.sites)), rest=list(map(explained, found.rest)))


def _install(model: nn.Module, found: Capture, memory_format: torch.memory_format, converted: frozenset[str]) -> None:
    report = _report_of(model, found)
    insides = interior.having_one(model, found)
    inside = set().union(*(root.modules() for root in insides))
    rewritten = [
        module
        for module, forwards in found.forwards.items()
        if module in inside or any(match.in_caller for _, matches in forwards for match in matches)
    ]
    whole = _outermost(model, found.forwards)
    # First all classes, because a rewritten forward notes those of the children that it counts on.
    for module in (*found.leaves, *rewritten, *insides, *whole, model):
        swap.install(module, swap.Plan())
    forwards = {
        module: tuple(rewrite(module, *forward) for forward in forwards) for module, forwards in found.forwards.items()
    }
    for module in rewritten:
        swap.install(module, swap.Plan(forwards[module]))
    for module in insides:
        swap.install(module, replace(swap.plan_of(module), interior=True))
    for module in whole:
        inner = module.named_modules(remove_duplicate=False)
        replays = replay.Replays({path: forwards[child] for path, child in inner if child in forwards})
        swap.install(module, replace(swap.plan_of(module), replays=replays))
    root = replace(swap.plan_of(model), report=report, memory_format=memory_format, converted=converted)
    swap.install(model, root)


def _outermost(model: nn.Module, traced: Container[nn.Module]) -> list[nn.Module]:
    """The modules of `traced` that are in no other of them."""
    if model in traced:
        return [model]
    return list(dict.fromkeys(module for child in model.children() for module in _outermost(child, traced)))


def unpatch(model: nn.Module) -> nn.Module:
    """Makes `model`, and every module in it, exactly what it was before `patch`, and returns it."""
    require_module(model, "unpatch")
    for module in model.modules():
        if (plan := swap.plan_of(module)) is not None:
            memory.put_back(module, plan.converted)
        swap.remove(module)
    return model


@contextmanager
def patched(model: nn.Module, **options) -> Iterator[nn.Module]:
    """`with patched(model):` patches within the block, with the options of `patch`, and puts back what was before."""
    require_model(model, "patch")
    with put_back(model):
        yield patch(model, **options)


@contextmanager
def put_back(model: nn.Module) -> Iterator[None]:
    """Leaves `model` patched, or not, as it was before the block."""
    before = {module: swap.plan_of(module) for module in model.modules()}
    try:
        yield
    finally:
        unpatch(model)
        for module, plan in before.items():
            if plan is not None:
                swap.install(module, plan)
                if plan.converted:
                    memory.arrange(module, plan.memory_format)


def report(model: nn.Module) -> Report:
    """What `patch(model)` did to each site, and what hooks that were added since undo. Raises `ValueError` if `model`
    is not what `patch` was given."""
    require_module(model, "report")
    plan = swap.plan_of(model)
    if plan is None or plan.report is None:
        raise ValueError(f"report: this {type(model).__name__} was not given to tritonconv.patch, so there is none")
    modules = dict(model.named_modules(remove_duplicate=False))
    blocks = _in_blocks(modules)
    return replace(plan.report, sites=tuple(_as_of_now(site, modules, blocks) for site in plan.report))


def _as_of_now(site: Site, modules: dict[str, nn.Module], blocks: set[nn.Module]) -> Site:
    if site.status != "fused":
        return site
    if any(name not in modules or intercepted(modules[name]) for name in site.members):
        return replace(site, status="swapped", reason="runs unfused: since patching, a member was hooked or removed")
    if site.fqn in modules and modules[site.fqn] not in blocks:
        reason = "runs unfused: since patching, a module of the same forward was replaced; patch again"
        return replace(site, status="swapped", reason=reason)
    return site


def _in_blocks(modules: dict[str, nn.Module]) -> set[nn.Module]:
    """The modules in the blocks of the rewritten forwards that still stand."""
    found = set()
    for path, module in modules.items():
        plan = swap.plan_of(module)
        for forward in plan.forwards if plan else ():
            if forward.stands(module):
                targets = (node.target for node in forward.graph.find_nodes(op="get_attr"))
                names = (f"{path}.{target}".strip(".") for target in targets)
                found.update(modules[name] for name in names if name in modules)
    return found


def _report_of(model: nn.Module, found: Capture) -> Report:
    tensors = chain(model.parameters(), model.buffers())
    device = next((tensor.device for tensor in tensors), torch.device("cpu"))

    def explained(site: Site) -> Site:
        said = site.reason or site.status != "swapped"
        return site if said else replace(site, reason=preference(site.pattern, device))

    return Report(type(model).__name__, tuple(map(explained, found.sites)), tuple(found.rest))


def _complain(report: Report, strict: bool) -> None:
    refused = [site for site in report if site.status == "left" and site.reason != EXCLUDED]
    if strict and not report:
        raise ValueError(f"patch: {report.name} has no site: it holds no convolution and no pooling")
    if strict and refused:
        sites = "".join(f"\n  {site.fqn} ({site.pattern}): {site.reason}" for site in refused)
        raise ValueError(f"patch: {len(refused)} of {len(report)} sites of {report.name} cannot be patched{sites}")
    if all(site.status == "left" for site in report):
        why = "report(model) says why" if report else "it holds no convolution and no pooling"
        warnings.warn(f"patch: none of the {len(report)} sites of {report.name} is patched; {why}", stacklevel=3)
