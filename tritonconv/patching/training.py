"""What `patch` tries of a model in training mode: whether torch is faster at a call and its gradients.

Autograd costs more around a kernel than around torch's functions, and a gradient is other work: what is faster in
inference need not be in training. So calls are timed as training makes them, each by itself, and run by torch where it
won. Nothing is stored: `tritonconv.tune` takes its time, and then holds.
"""

from __future__ import annotations

import math

from torch import nn

import autotune

from .. import choice, measuring, tuning
from ..measuring.calls import Call
from ..sample import tensors_of
from ..timing import turns
from . import trial

_PYTHON = 0.2e-3  # seconds, about, that autograd and Python take around a call's kernels; not where it is recorded


def choose(model: nn.Module, sample: object) -> None:
    """Notes, for the calls that the patched `model` makes in a training step on the sample, which is faster. Small ones
    come first: they gain least by kernels, and time is short."""
    device, spent = tensors_of(sample)[0].device, 0.0
    try:
        problems = tuning.problems(model, sample)
    except Exception:  # batch norm of one value, a detector without targets: in training it takes another sample
        return
    keys = [key for key in problems if measuring.is_call(key) and key["backward"]]
    for key in trial.shown(sorted(keys, key=lambda key: math.prod(key["arguments"][0]["shape"]))):
        if spent > trial.SECONDS:
            break
        if autotune.lookup(key) is not None:
            continue
        run = Call.of(key, device).run
        times = turns([run(choice.TORCH), run(choice.KERNELS)], seconds=0.02, rounds=3, device=device)
        theirs, ours = map(min, times)
        choice.note(key, *(choice.TORCH if theirs < time else choice.KERNELS for time in (ours, ours - _PYTHON)))
        spent += sum(map(sum, times))
    tuning.forget()
