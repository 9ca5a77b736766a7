"""A training step of whole networks (forward, backward, SGD) against torch: fp32, the same threads, interleaved, each
network in a process of its own. On a GPU in any arithmetic, halves by autocast, each peer's step captured in a CUDA
graph, too, and without dropout, whose numbers depend there on dtype and memory format.

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

from . import models
from .arithmetic import EXACT, MEASURED, Arithmetic
from .comparison import OURS, Row, publish
from .measure import DEVICE
from .peers import channels_last, patched
from .zoo import NETWORKS

# A gradient may be off by so much of its length, or by so many times what torch's own, in NCHW memory, is off by:
# rounding moves a ReLU or a maximum to its other side, and batch norm of few values magnifies it from layer to layer.
TOLERANCE, TIMES = 1e-2, 4


def as_it_is(model: nn.Module, x: Tensor) -> tuple[nn.Module, Tensor]:
    return copy.deepcopy(model), x


# How a peer lays out copies of a model and a batch in memory, and what it runs in the model's stead.
Peer = tuple[Callable, Callable[[nn.Module, Tensor], Callable[[Tensor], Tensor]]]
PEERS: dict[str, Peer] = {
    OURS: (channels_last, patched),
    "torch NCHW": (as_it_is, lambda model, x: model),
    "torch channels_last": (channels_last, lambda model, x: model),
    "torch.compile": (channels_last, lambda model, x: torch.compile(model)),
}


Step = Callable[[], list[Tensor]]


def step_of(peer: Peer, model: nn.Module, x: Tensor, arithmetic: Arithmetic) -> tuple[Step, list[nn.Parameter]]:
    """A training step of the peer's own copy of `model`, which returns the gradients, and that copy's parameters."""
    place, make = peer
    model, x = place(model.train(), x)
    for module in model.modules() if DEVICE.type == "cuda" else ():
        if isinstance(module, nn.Dropout):
            module.eval()
    parameters = list(model.parameters())
    with arithmetic.autocast(DEVICE):
        run = make(model, x)
    # So slow that the weights stay what they are: a step takes longer where numbers overflow or underflow.
    optimizer = torch.optim.SGD(parameters, lr=1e-6, momentum=0.9)

    def step() -> list[Tensor]:
        with arithmetic.autocast(DEVICE):
            loss = loss_of(run(x))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return [parameter.grad for parameter in parameters]

    return step, parameters


def loss_of(y: Tensor) -> Tensor:
    """The mean square distance from one; on a GPU times the root of how many there are, so that the gradients of many
    stay large enough for float16."""
    loss = F.mse_loss(y, torch.ones_like(y))
    return loss if DEVICE.type == "cpu" else loss * y.numel() ** 0.5


def gradient(step: Step) -> Tensor:
    torch.manual_seed(1)  # of dropout
    return torch.cat([gradient.flatten() for gradient in step()])


def error_of(got: Tensor, want: Tensor) -> float:
    return float((got - want).norm() / want.norm())


def check(want: Tensor, allowed: float, step: Step) -> None:
    error = error_of(gradient(step), want)
    if not error <= allowed:
        raise ValueError(f"its gradient is off by {error:.1e} of its length, so it is not timed")


def measure(arithmetic: str, batch: int, name: str, seconds: float | None) -> list[Row]:
    chosen = MEASURED[arithmetic]
    chosen.choose()
    model = NETWORKS[name].build().to(DEVICE)
    x = torch.randn(batch, *NETWORKS[name].input, device=DEVICE)

    def made(peer: str, model: nn.Module, x: Tensor, arithmetic: Arithmetic) -> Step:
        return step_of(PEERS[peer], model, x, arithmetic)[0]

    want = gradient(made("torch NCHW", copy.deepcopy(model).double(), x.double(), EXACT))
    allowed = max(TOLERANCE, TIMES * error_of(gradient(made("torch NCHW", model, x, chosen)), want))
    peers = {peer: partial(made, peer, model, x, chosen) for peer in PEERS}
    with inductor.patch(fallback_random=True):  # torch.compile then drops out what torch does
        right = partial(check, want, allowed)
        return models.compare_in_groups(arithmetic, batch, name, peers, right, seconds, rounds=3)


def main(arguments: Sequence[str] = ()) -> None:
    options = models.options_of("training", __doc__, (8,), arguments)
    publish("training", f"training step, {', '.join(options.arithmetic)}", models.rows(measure, options), options)
