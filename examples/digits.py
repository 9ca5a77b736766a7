"""Trains LeNet-5 on handwritten digits, plain and patched, and compares the two step by step.

Both networks start from the same weights and see the same batches in the same order, so they differ by rounding alone.
How much rounding alone may do shows a third run: plain again, its first weights scaled by the smallest factor that
float32 can tell from 1. The digits are the 1797 images of 8x8 pixels that come with scikit-learn. Writes the loss
curves as a PNG.
"""

import argparse
import copy
from dataclasses import dataclass, field
from pathlib import Path

import matplotlib
import torch
import torch.nn.functional as F
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table
from sklearn.datasets import load_digits
from torch import Tensor, nn

import tritonconv
from tritonconv import engines

matplotlib.use("Agg")  # draws without a display
from matplotlib import pyplot as plt  # noqa: E402

IMAGES = 1797
BATCH = 32
FEWEST = 5 * BATCH  # leave a batch to test on

# --samples and --epochs by default; the interpreter takes hundreds of times as long as machine code.
FULL = (IMAGES, 30)
SLICE = (320, 2)


class LeNet5(nn.Module):
    """LeCun et al., "Gradient-based learning applied to document recognition" (1998), for 8x8 images: the convolutions
    pad by 2, the activation is ReLU, the pooling takes the maximum."""

    def __init__(self):
        super().__init__()
        self.conv1 = nn.Conv2d(1, 6, 5, padding=2)
        self.conv2 = nn.Conv2d(6, 16, 5, padding=2)
        self.pool = nn.MaxPool2d(2)
        self.fc1 = nn.Linear(16 * 2 * 2, 120)
        self.fc2 = nn.Linear(120, 84)
        self.fc3 = nn.Linear(84, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.pool(F.relu(self.conv1(x)))
        x = self.pool(F.relu(self.conv2(x)))
        x = F.relu(self.fc1(x.flatten(1)))
        return self.fc3(F.relu(self.fc2(x)))


@dataclass(frozen=True)
class Digits:
    """Images [N, 1, 8, 8], from 0 to 1, and labels [N]; one in five is kept for the test."""

    train_images: Tensor
    train_labels: Tensor
    test_images: Tensor
    test_labels: Tensor


@dataclass
class Run:
    """One training: the loss at every step, and after every epoch its mean and the test accuracy."""

    name: str
    model: nn.Module
    losses: list[float] = field(default_factory=list)
    epoch_losses: list[float] = field(default_factory=list)
    accuracies: list[float] = field(default_factory=list)


def load(samples: int) -> Digits:
    digits = load_digits()
    chosen = torch.randperm(IMAGES, generator=torch.Generator().manual_seed(0))[:samples]
    images = torch.tensor(digits.images, dtype=torch.float32)[chosen, None] / 16
    labels = torch.tensor(digits.target)[chosen]
    split = samples // 5
    return Digits(images[split:], labels[split:], images[:split], labels[:split])


@torch.no_grad()
def nudged(model: nn.Module) -> nn.Module:
    model = copy.deepcopy(model)
    for parameter in model.parameters():
        parameter.mul_(1 + torch.finfo(parameter.dtype).eps)
    return model


def train(run: Run, digits: Digits, epochs: int, progress: Progress) -> None:
    steps = len(digits.train_images) // BATCH
    bar = progress.add_task(run.name, total=epochs * steps, loss=float("nan"))
    optimizer = torch.optim.SGD(run.model.parameters(), lr=0.02, momentum=0.9)
    generator = torch.Generator().manual_seed(1)  # the same batches in every run
    for _ in range(epochs):
        order = torch.randperm(len(digits.train_images), generator=generator)
        for batch in order[: steps * BATCH].split(BATCH):
            loss = F.cross_entropy(run.model(digits.train_images[batch]), digits.train_labels[batch])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            run.losses.append(loss.item())
            progress.update(bar, advance=1, loss=run.losses[-1])
        run.epoch_losses.append(sum(run.losses[-steps:]) / steps)
        run.accuracies.append(accuracy(run.model, digits))


@torch.no_grad()
def accuracy(model: nn.Module, digits: Digits) -> float:
    return (model(digits.test_images).argmax(1) == digits.test_labels).double().mean().item()


def largest_difference(run: Run, other: Run) -> float:
    return max(abs(a - b) for a, b in zip(run.losses, other.losses, strict=True))


def comparison(runs: list[Run]) -> Table:
    table = Table(title="mean training loss and test accuracy per epoch")
    for heading in ("epoch", *(f"{run.name}\nloss" for run in runs), *(f"{run.name}\naccuracy" for run in runs)):
        table.add_column(heading, justify="right")
    for epoch in range(len(runs[0].accuracies)):
        losses = (f"{run.epoch_losses[epoch]:.6f}" for run in runs)
        table.add_row(str(epoch + 1), *losses, *(f"{run.accuracies[epoch]:.2%}" for run in runs))
    return table


def plot(runs: list[Run], path: Path) -> None:
    figure, (losses, differences) = plt.subplots(2, 1, sharex=True, figsize=(8, 7), height_ratios=(2, 1))
    plain, patched, _ = runs
    losses.plot(plain.losses, color="silver", linewidth=4, label=plain.name)
    losses.plot(patched.losses, color="tab:blue", linewidth=0.8, label=patched.name)
    for run in runs[1:]:
        difference = [abs(a - b) for a, b in zip(run.losses, plain.losses, strict=True)]
        differences.plot(difference, linewidth=0.8, label=f"|{run.name} − {plain.name}|")
    losses.set(title="LeNet-5 on handwritten digits", ylabel="training loss", yscale="log")
    differences.set(xlabel="step", ylabel="difference", yscale="log")
    for axes in (losses, differences):
        axes.grid(alpha=0.3)
        axes.legend()
    figure.tight_layout()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)
    plt.close(figure)


def parse(arguments: list[str] | None, samples: int, epochs: int) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    option = parser.add_argument
    option(
        "--samples", type=int, default=samples, help="images used, one in five of them to test (default: %(default)s)"
    )
    option("--epochs", type=int, default=epochs, help="passes over the training images (default: %(default)s)")
    option("--out", type=Path, default=Path("out/digits.png"), help="the PNG to write (default: %(default)s)")
    options = parser.parse_args(arguments)
    if not FEWEST <= options.samples <= IMAGES:
        parser.error(f"--samples must be from {FEWEST} to {IMAGES}, got {options.samples}")
    if options.epochs < 1:
        parser.error(f"--epochs must be at least 1, got {options.epochs}")
    if options.out.suffix != ".png":
        parser.error(f"--out must name a .png file, got {options.out}")
    return options


def main(arguments: list[str] | None = None) -> list[Run]:
    engine = engines.engine_for(torch.device("cpu")).name
    options = parse(arguments, *(SLICE if engine == "interpreter" else FULL))
    digits = load(options.samples)
    torch.manual_seed(0)
    model = LeNet5()
    patched_model = tritonconv.patch(copy.deepcopy(model))
    plain, patched, control = runs = [Run("plain", model), Run("patched", patched_model), Run("nudged", nudged(model))]

    console = Console()
    console.print(tritonconv.report(patched.model))
    console.print(
        f"{len(digits.train_labels)} images to train on, {len(digits.test_labels)} to test; engine: {engine}\n"
    )
    columns = (
        TextColumn("{task.description:>7}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("loss {task.fields[loss]:.4f}"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console) as progress:
        for run in runs:
            train(run, digits, options.epochs, progress)
    plot(runs, options.out)

    console.print(comparison(runs))
    console.print(
        f"largest difference of the loss from plain's at any of the {len(plain.losses)} steps: "
        f"{largest_difference(patched, plain):.1e} patched, {largest_difference(control, plain):.1e} by rounding alone"
    )
    console.print(f"loss curves: {options.out}")
    return runs


if __name__ == "__main__":
    torch.set_num_threads(1)  # a layer this small is done before a second thread is awake
    main()
