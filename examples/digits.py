"""Trains LeNet-5 on handwritten digits twice, plain and patched, and compares the two step by step.

Both networks start from the same weights and see the same batches in the same order, so they differ by rounding alone.
The digits are the 1797 images of 8x8 pixels that come with scikit-learn. Writes the loss curves as a PNG.
"""

import argparse
import copy
import time
from dataclasses import dataclass, field
from pathlib import Path

import matplotlib

matplotlib.use("Agg")  # no display is needed

import torch
import torch.nn.functional as F
from matplotlib import pyplot as plt
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table
from sklearn.datasets import load_digits
from torch import Tensor, nn

import tritonconv
from tritonconv import engines

BATCH = 32
IMAGES = 1797
FEWEST = 5 * BATCH  # leaves one batch to test on
# (images, epochs): the interpreter takes a thousand times as long as compiled kernels do.
FULL, SLICE = (IMAGES, 20), (256, 2)


class LeNet5(nn.Module):
    """LeCun et al., "Gradient-based learning applied to document recognition" (1998), for 8x8 images: padded by 2, and
    with ReLU and max-pooling."""

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
    """Images [N, 1, 8, 8] from 0 to 1 and their labels [N]; one in five is kept for the test."""

    train_images: Tensor
    train_labels: Tensor
    test_images: Tensor
    test_labels: Tensor


@dataclass
class Run:
    """One training: the loss at every step, and per epoch the mean loss and the test accuracy."""

    name: str
    model: nn.Module
    losses: list[float] = field(default_factory=list)
    epoch_losses: list[float] = field(default_factory=list)
    accuracies: list[float] = field(default_factory=list)
    seconds: float = 0.0


def load(samples: int) -> Digits:
    digits = load_digits()
    chosen = torch.randperm(IMAGES, generator=torch.Generator().manual_seed(0))[:samples]
    images = torch.tensor(digits.images, dtype=torch.float32)[chosen, None] / 16
    labels = torch.tensor(digits.target)[chosen]
    split = samples // 5
    return Digits(images[split:], labels[split:], images[:split], labels[:split])


def train(run: Run, digits: Digits, epochs: int, progress: Progress) -> None:
    steps = len(digits.train_images) // BATCH
    bar = progress.add_task(run.name, total=epochs * steps, loss=float("nan"))
    optimizer = torch.optim.SGD(run.model.parameters(), lr=0.05, momentum=0.9)
    order = torch.Generator().manual_seed(1)  # the same batches for every run
    start = time.perf_counter()
    for _ in range(epochs):
        for batch in torch.randperm(len(digits.train_images), generator=order)[: steps * BATCH].split(BATCH):
            loss = F.cross_entropy(run.model(digits.train_images[batch]), digits.train_labels[batch])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            run.losses.append(loss.item())
            progress.update(bar, advance=1, loss=run.losses[-1])
        run.epoch_losses.append(sum(run.losses[-steps:]) / steps)
        run.accuracies.append(accuracy(run.model, digits))
    run.seconds = time.perf_counter() - start


@torch.no_grad()
def accuracy(model: nn.Module, digits: Digits) -> float:
    return (model(digits.test_images).argmax(1) == digits.test_labels).double().mean().item()


def comparison(plain: Run, patched: Run) -> Table:
    table = Table(title="LeNet-5 on handwritten digits: mean training loss and test accuracy per epoch")
    for heading in ("epoch", "loss, plain", "loss, patched", "accuracy, plain", "accuracy, patched"):
        table.add_column(heading, justify="right")
    rows = zip(plain.epoch_losses, patched.epoch_losses, plain.accuracies, patched.accuracies, strict=True)
    for epoch, (loss, patched_loss, correct, patched_correct) in enumerate(rows, 1):
        table.add_row(str(epoch), f"{loss:.6f}", f"{patched_loss:.6f}", f"{correct:.2%}", f"{patched_correct:.2%}")
    return table


def plot(plain: Run, patched: Run, path: Path) -> None:
    figure, (losses, difference) = plt.subplots(2, 1, sharex=True, figsize=(8, 7), height_ratios=(2, 1))
    losses.plot(plain.losses, label="plain", linewidth=3, alpha=0.4)
    losses.plot(patched.losses, label="patched", linewidth=1)
    losses.set(title="LeNet-5 on handwritten digits", ylabel="training loss", yscale="log")
    losses.legend()
    difference.plot([abs(a - b) for a, b in zip(plain.losses, patched.losses, strict=True)], color="black", linewidth=1)
    difference.set(xlabel="step", ylabel="|plain − patched|", yscale="log")
    for axes in (losses, difference):
        axes.grid(alpha=0.3)
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


def main(arguments: list[str] | None = None) -> tuple[Run, Run]:
    engine = engines.engine_for(torch.device("cpu")).name
    options = parse(arguments, *(SLICE if engine == "interpreter" else FULL))
    console = Console()
    digits = load(options.samples)
    torch.manual_seed(0)
    plain = Run("plain", LeNet5())
    patched = Run("patched", tritonconv.patch(copy.deepcopy(plain.model)))

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
        for run in (plain, patched):
            train(run, digits, options.epochs, progress)
    plot(plain, patched, options.out)

    console.print(comparison(plain, patched))
    largest = max(abs(a - b) for a, b in zip(plain.losses, patched.losses, strict=True))
    console.print(f"largest difference of the loss at any of the {len(plain.losses)} steps: {largest:.1e}")
    console.print(f"plain {plain.seconds:.1f} s, patched {patched.seconds:.1f} s; loss curves: {options.out}")
    return plain, patched


if __name__ == "__main__":
    main()
