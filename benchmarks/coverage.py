"""What `patch` takes of each network, and whether the patched network infers and trains as the original does.

Networks: ours, and some of torchvision, timm and segmentation_models_pytorch where these are installed; with random
weights, in float64, in which rounding is far below any other difference. Compared are the outputs in evaluation mode,
with statistics taken from the sample, and parameters and buffers after some steps of training. A row fails if the
patched network differs, or raises where torch does not; a training that drifts apart no further than ten times what
rounding alone does to it has not failed. Writes docs/networks.md.
"""

from __future__ import annotations

import argparse
import copy
import importlib
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from fnmatch import fnmatchcase
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from torch.optim.swa_utils import update_bn
from torch.utils._pytree import tree_leaves

import tritonconv

from .comparison import OURS, WIDTH, Row, figure
from .measure import RESULTS, about, load, markdown, reason, save
from .zoo import NETWORKS

DOCUMENT = Path(__file__).parents[1] / "docs" / "networks.md"
STEPS = 10  # of training for our own networks,
FEW = 2  # for those of the libraries
TOLERANCE = 1e-7  # of the largest element: what torch.testing allows in float64
FRACTION = 0.25  # of the width of our own networks
IMAGE = (3, 64, 64)
LARGER = {"inception_v3": (3, 299, 299), "visformer_tiny": (3, 224, 224), "PAN": (3, 128, 128)}  # take no smaller ones

# One or two of each family: the small ones say as much.
TORCHVISION = """
    convnext_tiny deeplabv3_mobilenet_v3_large deeplabv3_resnet50 densenet121 efficientnet_b0 efficientnet_v2_s
    fcn_resnet50 googlenet inception_v3 lraspp_mobilenet_v3_large mnasnet0_5 mobilenet_v2 mobilenet_v3_small
    regnet_x_400mf regnet_y_400mf resnet18 resnet50 resnext50_32x4d shufflenet_v2_x0_5 squeezenet1_0 squeezenet1_1
    vgg11 vgg11_bn wide_resnet50_2
""".split()  # noqa: SIM905
TIMM = """
    convmixer_768_32 convnext_atto cs3darknet_s cspresnet50 densenet121 dla34 dpn48b
    edgenext_xx_small efficientnet_lite0 ese_vovnet19b_dw fbnetv3_b focalnet_tiny_srf gcresnet33ts
    gernet_s ghostnet_050 hardcorenas_a hgnet_tiny hrnet_w18_small inception_next_tiny
    lcnet_050 mixnet_s mobilenetv3_small_050 mobilenetv4_conv_small mobileone_s0 nf_regnet_b0 nf_resnet26 poolformer_s12
    regnetx_002 regnety_002 regnetz_b16 repghostnet_050 repvgg_a0 repvit_m0_9 res2net50_14w_8s resnest14d resnet10t
    resnetblur50 resnetv2_50 resnext26ts rexnet_100 selecsls42 seresnet18 skresnet18 spnasnet_100 starnet_s1
    tf_efficientnetv2_b0 tf_mobilenetv3_small_minimal_100 tinynet_e tresnet_m visformer_tiny xception41
""".split()  # noqa: SIM905
LIBRARIES = "torchvision", "timm", "segmentation_models_pytorch"
SEGMENTATION = ("Unet", "UnetPlusPlus", "MAnet", "Linknet", "FPN", "PSPNet", "DeepLabV3", "DeepLabV3Plus", "PAN")

DETECTION = "fasterrcnn_mobilenet_v3_large_fpn", "ssdlite320_mobilenet_v3_large"

Candidate = tuple[str, Callable[[], nn.Module], tuple[int, ...]]


def optional(name: str):
    try:
        return importlib.import_module(name)
    except ImportError:
        return None


class Detector(nn.Module):
    """A detector of torchvision as a network of one input: images, with in training the same box in each."""

    def __init__(self, name: str, **options):
        super().__init__()
        make = importlib.import_module("torchvision.models").get_model
        self.detector = make(name, weights=None, weights_backbone=None, **options)

    def forward(self, x: Tensor):
        box = {"boxes": x.new_tensor([[8, 8, 40, 40]]), "labels": torch.ones(1, dtype=torch.long)}
        return self.detector(list(x), [box] * len(x) if self.training else None)


def candidates() -> Iterator[Candidate]:
    """Names, what makes the network, and the shape of a sample."""
    for name, network in NETWORKS.items():
        yield name, partial(network.build, FRACTION), network.small or network.input
    if library := optional("torchvision.models"):
        for name in TORCHVISION:
            options = {"weights_backbone": None} if hasattr(library.segmentation, name) else {}
            make = partial(library.get_model, name, weights=None, **options)
            yield f"torchvision {name}", make, LARGER.get(name, IMAGE)
        for name in DETECTION:
            options = {} if name.startswith("ssd") else {"min_size": 64, "max_size": 64}
            yield f"torchvision {name}", partial(Detector, name, **options), IMAGE
    if library := optional("timm"):
        for name in TIMM:
            yield f"timm {name}", partial(library.create_model, name), LARGER.get(name, IMAGE)
    if library := optional("segmentation_models_pytorch"):
        for name in SEGMENTATION:
            make = partial(getattr(library, name), "resnet18", encoder_weights=None)
            yield f"segmentation_models_pytorch {name}", make, LARGER.get(name, IMAGE)


def outputs(model: nn.Module, x: Tensor) -> list[Tensor]:
    return [y for y in tree_leaves(model(x)) if isinstance(y, Tensor)]


def trained(model: nn.Module, x: Tensor, steps: int) -> list[Tensor]:
    torch.manual_seed(1)  # of dropout
    optimizer = torch.optim.SGD(model.train().parameters(), lr=1e-4, momentum=0.9)
    for _ in range(steps):
        loss = sum(F.mse_loss(y, torch.ones_like(y)) for y in outputs(model, x))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return [value for value in model.state_dict().values() if value.is_floating_point()]


@torch.no_grad()
def nudged(model: nn.Module) -> nn.Module:
    """`model`, its weights scaled by the smallest factor that float64 can tell from 1."""
    for parameter in model.parameters():
        parameter.mul_(1 + torch.finfo(parameter.dtype).eps)
    return model


def difference(got: Sequence[Tensor], want: Sequence[Tensor]) -> float:
    """The largest of all tensors' errors, each relative to its tensor's largest element (1e-6 if that is smaller). A
    detector may find nothing."""
    pairs = [(g, w) for g, w in zip(got, want, strict=True) if g.numel() or w.numel()]
    errors = [(g - w).abs().max() / w.abs().max().clamp(min=1e-6) for g, w in pairs]
    return max(map(float, errors), default=0.0)


def measure(name: str, make: Callable[[], nn.Module], shape: tuple[int, ...]) -> dict[str, object]:
    """A row; one that says why if torch itself does not run the network on such a sample."""
    steps = STEPS if name in NETWORKS else FEW
    torch.manual_seed(0)
    plain = make().double()
    x = torch.randn(2, *shape, dtype=torch.float64)
    try:
        update_bn([x], plain)  # as made, norms let hardly anything of the input through to the output
        untrained, control = copy.deepcopy(plain), copy.deepcopy(plain)
        with torch.no_grad():
            infers = outputs(plain.eval(), x)
        trains = trained(plain, x, steps)
    except (RuntimeError, ValueError, AssertionError, TypeError) as error:
        return {"network": name, "skipped": reason(error)}
    row: dict[str, object] = {"network": name, "steps": steps, "failed": ""}
    try:
        begin = time.perf_counter()
        patched = tritonconv.patch(untrained)
        row["patch_seconds"] = time.perf_counter() - begin
        sites = tuple(tritonconv.report(patched))
        row |= Counter(site.status for site in sites)
        row["why"] = dict(Counter(site.reason for site in sites if site.status == "left"))
        row["unfused"] = dict(Counter(site.reason for site in sites if site.status == "swapped" and site.reason))
        with torch.no_grad():
            row["inference"] = difference(outputs(patched.eval(), x), infers)
        row["training"] = difference(trained(patched, x, steps), trains)
        allowed = TOLERANCE
        if row["training"] > TOLERANCE:  # or does rounding alone do as much? Batch norm of two values may magnify it so
            row["rounding"] = difference(trained(nudged(control), x, steps), trains)
            allowed = max(allowed, 10 * row["rounding"])
        if not (row["inference"] <= TOLERANCE and row["training"] <= allowed):
            row["failed"] = "the results differ"
    except Exception as error:
        row["failed"] = reason(error)
    return row


HEADINGS = "network", "fused", "swapped", "left", "inference", "training", "patch, s", "why left, or failed"


def line_of(row: dict) -> list[str]:
    if "skipped" in row:
        return [row["network"], *["–"] * 6, f"not run: {row['skipped']}"]
    counts = (str(row.get(status, 0)) for status in ("fused", "swapped", "left"))
    errors = (f"{row[what]:.0e}" if what in row else "–" for what in ("inference", "training"))
    why = row["failed"] or "; ".join(f"{count} × {text}" for text, count in row["why"].items())
    if "rounding" in row:
        why = f"rounding alone changes training by {row['rounding']:.0e}; {why}".rstrip("; ")
    return [row["network"], *counts, *errors, f"{row['patch_seconds']:.2f}", why]


def table_of(rows: Sequence[dict]) -> Table:
    table = Table(title="patch: sites, and the largest relative difference (float64)")
    for heading in HEADINGS:
        table.add_column(heading, overflow="fold")
    for row in rows:
        table.add_row(*line_of(row), style="red" if row.get("failed") else None)
    return table


def stored(path: Path) -> tuple[dict[str, dict], int]:
    """The rows of earlier runs, and the seconds that these took."""
    if not path.exists():
        return {}, 0
    found = load(path)
    return {row["name"]: row["facts"] for row in found["rows"]}, found["seconds"]


def keep(path: Path, rows: dict[str, dict], **more: object) -> None:
    kept = []
    for name, facts in rows.items():
        figures = {} if "skipped" in facts else {OURS: figure([facts.get("left", 0)])}
        kept.append(Row("left to torch", name, "sites", figures, facts=facts).to_json())
    save("coverage", kept, path, **more)


def document(rows: Sequence[dict], origin: str) -> None:
    unfused = Counter()
    for row in rows:
        unfused.update(row.get("unfused", {}))
    reasons = "\n".join(f"- {count} × {text}" for text, count in unfused.most_common())
    DOCUMENT.write_text(
        "# Networks\n\n"
        "What `patch` takes of each network, and how far the patched network is from the original in float64: the\n"
        f"outputs in evaluation mode, and parameters and buffers after training ({STEPS} steps for this project's own\n"
        f"networks, {FEW} for the others), each relative to the tensor's largest element. Random weights, batch 2.\n"
        "Written by `python -m benchmarks coverage`.\n\n"
        f"{markdown(HEADINGS, map(line_of, rows))}\n\n"
        "Why what runs on kernels of its own was not fused with its neighbours:\n\n"
        f"{reasons}\n\n{origin}\n",
        encoding="utf-8",
    )


def main(arguments: Sequence[str] = ()) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks coverage", description=__doc__)
    parser.add_argument("--only", metavar="GLOB", nargs="+", default=["*"], help="networks; of the others, rows stay")
    parser.add_argument("--out", metavar="FILE", type=Path, help="store there, and write no docs/networks.md")
    options = parser.parse_args(arguments)
    chosen = [each for each in candidates() if any(fnmatchcase(each[0], glob) for glob in options.only)]
    versions = {name: module.__version__ for name in LIBRARIES if (module := optional(name))}
    path = options.out or RESULTS / "coverage.json"
    console, (rows, before) = Console(width=WIDTH), stored(path) if options.only != ["*"] else ({}, 0)
    begin = time.monotonic()
    warnings.simplefilter("ignore")  # the networks' own
    for name, *candidate in chosen:
        row = rows[name] = measure(name, *candidate)
        console.print(name, row.get("failed") or row.get("skipped") or "equal", markup=False)
        seconds = round(before + time.monotonic() - begin)
        keep(path, rows, libraries=versions, seconds=seconds)  # at once: all of them take long
    measured = [rows[name] for name, *_ in chosen]
    failed = [row["network"] for row in measured if row.get("failed")]
    console.print(table_of(measured))
    console.print(f"{len(measured)} networks, {len(failed)} failed; stored in {path}", markup=False)
    if options.out is None:
        document(list(rows.values()), about(load(path)))
    if failed:
        raise SystemExit(f"coverage: {', '.join(failed)} failed")
