"""The ways to run a model that are compared: ours, torch's, and the inference engines that are installed.

Each takes a model in evaluation mode, a batch and a directory to work in, and returns a function that runs it. A peer
that is not installed, or cannot run the model, raises whatever it raises.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

import tritonconv

from .comparison import OURS, PLAIN
from .measure import DEVICE

Run = Callable[[], Tensor]


def channels_last(model: nn.Module, x: Tensor) -> tuple[nn.Module, Tensor]:
    """A copy of both in channels_last memory, where there is such a thing."""
    if x.dim() != 4:
        return copy.deepcopy(model), x
    return copy.deepcopy(model).to(memory_format=torch.channels_last), x.contiguous(memory_format=torch.channels_last)


def patched(model: nn.Module, x: Tensor) -> nn.Module:
    """On a GPU kernels run everywhere: on a sample `patch` would time calls, which may wait for the host."""
    return tritonconv.patch(model, x if DEVICE.type == "cpu" else None)


def ours(model: nn.Module, x: Tensor, directory: Path) -> Run:
    model, x = channels_last(model, x)
    run = patched(model, x)
    return lambda: run(x)


def plain(model: nn.Module, x: Tensor, directory: Path) -> Run:
    """Patched in one line and called as before: in NCHW memory, and kernels everywhere."""
    model = tritonconv.patch(copy.deepcopy(model))
    return lambda: model(x)


def eager(model: nn.Module, x: Tensor, directory: Path) -> Run:
    return lambda: model(x)


def eager_channels_last(model: nn.Module, x: Tensor, directory: Path) -> Run:
    model, x = channels_last(model, x)
    return lambda: model(x)


def compiled(model: nn.Module, x: Tensor, directory: Path) -> Run:
    model, x = channels_last(model, x)
    run = torch.compile(model)
    return lambda: run(x)


def frozen(model: nn.Module, x: Tensor, directory: Path) -> Run:
    """torch.compile with the weights as constants, packed and folded into one another."""
    from torch._inductor import config

    model, x = channels_last(model, x)
    # A function of its own: graphs are kept by the code they come from, and `compiled` has made one of the module's.
    run = torch.compile(lambda x: model(x))
    with config.patch(freezing=True):
        run(x)  # compiles
    return lambda: run(x)


def _onnx(model: nn.Module, x: Tensor, directory: Path) -> str:
    path = directory / "model.onnx"
    if not path.exists():
        torch.onnx.export(model, (x,), path, input_names=["x"], dynamo=True, verbose=False)
    return str(path)


def onnxruntime(model: nn.Module, x: Tensor, directory: Path) -> Run:
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = ort.InferenceSession(_onnx(model, x, directory), options, providers=["CPUExecutionProvider"])
    binding = session.io_binding()  # arrays stay where they are
    binding.bind_input("x", "cpu", 0, np.float32, x.shape, x.data_ptr())
    y = torch.empty_like(model(x))
    binding.bind_output(session.get_outputs()[0].name, "cpu", 0, np.float32, y.shape, y.data_ptr())

    def run() -> Tensor:
        session.run_with_iobinding(binding)
        return y

    return run


def openvino(model: nn.Module, x: Tensor, directory: Path) -> Run:
    import openvino as ov

    settings = {
        "INFERENCE_NUM_THREADS": torch.get_num_threads(),
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_PRECISION_HINT": "f32",
    }
    request = ov.Core().compile_model(_onnx(model, x, directory), "CPU", settings).create_infer_request()
    feed = {"x": x.numpy()}
    return lambda: torch.from_numpy(request.infer(feed, share_inputs=True, share_outputs=True)[0])


Make = Callable[[nn.Module, Tensor, Path], Run]
ON_CPUS: dict[str, Make] = {
    "torch.compile frozen": frozen,
    "ONNX Runtime": onnxruntime,
    "OpenVINO": openvino,
}
PEERS: dict[str, Make] = {
    OURS: ours,
    PLAIN: plain,
    "torch NCHW": eager,
    "torch channels_last": eager_channels_last,
    "torch.compile": compiled,
} | (ON_CPUS if DEVICE.type == "cpu" else {})
