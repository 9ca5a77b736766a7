"""A training step of whole networks (forward, backward, SGD) against torch: fp32, the same threads, interleaved, each
network in a process of its own.

A peer whose gradient is wrong is left out. `ratio` is the median time of the fastest other peer over ours: above 1 ours
is the fastest.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._inductor import config as inductor

import tritonconv

from .comparison import OURS, Row, apart, compare, parser, publish
from .measure import DEVICE
from .peers import channels_last
from .zoo import NETWORKS

# A gradient may be off by so much of its length, or by so many times what torch's own, in NCHW memory, is off by:
# rounding moves a ReLU or a maximum to its other side, and batch norm of few values magnifies it from layer to layer.
TOLERANCE, TIMES = 1e-2, 4


def as_it_is(model: nn.Module, x: Tensor) -> tuple[nn.Module, Tensor]:
    return copy.deepcopy(model), x


# How a peer lays out copies of a model and a batch in memory, and what it runs in the model's stead.
Peer = tuple[Callable, Callable[[nn.Module, Tensor], Callable[[Tensor], Tensor]]]
PEERS: dict[str, Peer] = {
    OURS: (channels_last, tritonconv.patch),
    "torch NCHW": (as_it_is, lambda model, x: model),
    "torch channels_last": (channels_last, lambda model, x: model),
    "torch.compile": (channels_last, lambda model, x: torch.compile(model)),
}


def step_of(peer: Peer, model: nn.Module, x: Tensor) -> tuple[Callable[[], None], list[nn.Parameter]]:
    """A training step of the peer's own copy of `model`, and that copy's parameters."""
    place, make = peer
    model, x = place(model.train(), x)
    parameters, run = list(model.parameters()), make(model, x)
    # So slow that the weights stay what they are: a step takes longer where numbers overflow or underflow.
    optimizer = torch.optim.SGD(parameters, lr=1e-6, momentum=0.9)

    def step() -> None:
        y = run(x)
        optimizer.zero_grad()
        F.mse_loss(y, torch.ones_like(y)).backward()
        optimizer.step()

    return step, parameters


def gradient(step: Callable[[], None], parameters: Sequence[nn.Parameter]) -> Tensor:
    torch.manual_seed(1)  # of dropout
    step()
    return torch.cat([parameter.grad.flatten() for parameter in parameters])


def error_of(got: Tensor, want: Tensor) -> float:
    return float((got - want).norm() / want.norm())


def checked(peer: str, model: nn.Module, x: Tensor, want: Tensor, allowed: float) -> Callable[[], None]:
    step, parameters = step_of(PEERS[peer], model, x)
    error = error_of(gradient(step, parameters), want)
    if not error <= allowed:
        raise ValueError(f"its gradient is off by {error:.1e} of its length, so it is not timed")
    return step


def measure(name: str, batch: int, seconds: float) -> Row:
    model = NETWORKS[name].build().to(DEVICE)
    x = torch.randn(batch, *NETWORKS[name].input, device=DEVICE)
    want = gradient(*step_of(PEERS["torch NCHW"], copy.deepcopy(model).double(), x.double()))
    allowed = max(TOLERANCE, TIMES * error_of(gradient(*step_of(PEERS["torch NCHW"], model, x)), want))
    peers = {peer: partial(checked, peer, model, x, want, allowed) for peer in PEERS}
    with inductor.patch(fallback_random=True):  # torch.compile then drops out what torch does
        return compare(f"batch {batch}", name, peers, seconds, {"batch": batch}, rounds=3)


def main(arguments: Sequence[str] = ()) -> None:
    options = parser("training", __doc__, NETWORKS, seconds=3.0, batches=(8,)).parse_args(arguments)
    names = options.only or NETWORKS
    rows = [apart(measure, name, batch, options.seconds) for batch in options.batch for name in names]
    publish("training", "training step, fp32", rows, options)
