"""The target among its neighbours: Triton's launches, torch, GPUs."""

import os
import subprocess
import sys
import textwrap
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
import triton
import triton.language as tl
from triton.runtime.jit import JITFunction

from tritonconv import engines, launch
from tritonconv.configs import TileConfig
from tritonconv.cpu.driver import CPUDriver
from tritonconv.geometry import ConvGeometry
from tritonconv.launch import packing

ROOT = Path(__file__).parents[2]


@triton.jit
def add(x, y, out, n, BLOCK: tl.constexpr):
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.store(out + i, tl.load(x + i, mask=i < n) + tl.load(y + i, mask=i < n), mask=i < n)


@triton.jit
def store_scalars(out, a, b, c, d, e, f, g):
    tl.store(out, a.to(tl.float64))
    tl.store(out + 1, b.to(tl.float64))
    tl.store(out + 2, c.to(tl.float64))
    tl.store(out + 3, d)
    tl.store(out + 4, tl.where(e, 1.0, 2.0))
    tl.store(out + 5, f.to(tl.float64))
    tl.store(out + 6, g)


def test_scalar_arguments():
    out = torch.zeros(7, dtype=torch.float64)
    store_scalars[(1,)](out, 5, -(2**40), 2**63 + 2**62, 1.5, True, -7, 1)
    assert out.tolist() == [5, -(2**40), 2**63 + 2**62, 1.5, 1, -7, 1]


@pytest.mark.parametrize("n", [0, 1, 1000])
def test_grid_as_function_and_hooks(n, monkeypatch):
    seen = []
    monkeypatch.setattr(triton.knobs.runtime, "launch_enter_hook", seen.append)
    x, y, out = torch.randn(1000), torch.randn(1000), torch.zeros(1000)
    add[lambda meta: (triton.cdiv(n, meta["BLOCK"]),)](x, y, out, n, BLOCK=256)
    torch.testing.assert_close(out[:n], (x + y)[:n])
    assert not out[n:].any() and len(seen) == 1


def test_tensor_elsewhere():
    x = torch.zeros(16, device="meta")
    with pytest.raises(ValueError, match="the CPU target was given a tensor on meta"):
        add[(1,)](x, x, x, 16, 16)


def test_stages_can_be_read():
    x = torch.zeros(16)
    kernel = add[(1,)](x, x, x, 16, 16)
    assert {"ttir", "llir"} <= set(kernel.asm)
    assert "define void @add" in kernel.asm["llir"]


def test_threads_launch_at_once():
    def work(seed):
        x = torch.full((5000,), float(seed))
        for _ in range(50):
            out = torch.zeros(5000)
            add[(20,)](x, x, out, 5000, 256)
            assert (out == 2 * seed).all()

    work(0)  # compiled by one thread: Python 3.11's ast.parse fails in several at once
    with ThreadPoolExecutor(4) as pool:
        assert len(list(pool.map(work, range(1, 5)))) == 4


def test_do_bench():
    x = torch.zeros(1 << 16)
    milliseconds = triton.testing.do_bench(lambda: add[(64,)](x, x, x, 1 << 16, 1024), warmup=1, rep=3)
    assert milliseconds > 0


def test_gives_way_to_a_gpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert not CPUDriver.is_active()
    monkeypatch.setenv("TRITON_DEFAULT_BACKEND", "tritonconv_cpu")
    assert CPUDriver.is_active()


def test_kernels_are_cached_apart_from_a_gpus():
    x = torch.zeros(16)
    add[(1,)](x, x, x, 16, 16)
    assert set(add.device_caches) == {"cpu"}


# ---- other users of torch and Triton, in processes of their own ---------------------------------------------------


@pytest.fixture
def installed(tmp_path):
    """An environment in which the target is known by its entry point, as where the package is installed."""
    info = tmp_path / "tritonconv_cpu_target-0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: tritonconv-cpu-target\nVersion: 0\n")
    (info / "entry_points.txt").write_text("[triton.backends]\ntritonconv_cpu = tritonconv.cpu\n")
    return {**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), str(ROOT), *sys.path])}


def run(program: str, tmp_path, environment) -> None:
    file = tmp_path / "program.py"  # a file: Triton reads its kernels' source
    file.write_text(textwrap.dedent(program))
    done = subprocess.run([sys.executable, file], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_entry_point(installed, tmp_path):
    """Loading Triton loads nothing heavy on the target's account; a kernel then runs."""
    run(
        """
        import sys
        import triton
        assert not {"torch", "llvmlite"} & set(sys.modules), "loaded by importing triton"
        import torch
        import triton.language as tl
        from triton.backends import backends
        assert "tritonconv_cpu" in backends and "cpu" not in backends

        @triton.jit
        def double(x):
            i = tl.arange(0, 8)
            tl.store(x + i, tl.load(x + i) * 2)

        x = torch.ones(8)
        double[(1,)](x)
        assert x.eq(2).all()
        """,
        tmp_path,
        installed,
    )


def test_torch_takes_no_notice(installed, tmp_path):
    """has_triton() and what torch.compile chooses for the CPU are as without the target."""
    run(
        """
        import torch
        from torch._inductor import config
        from torch.utils._triton import has_triton
        assert not has_triton()
        assert config.cpu_backend == "cpp"
        from torch._inductor.codegen.common import get_scheduling_for_device, init_backend_registration
        init_backend_registration()
        kinds = type(get_scheduling_for_device("cpu")(None)).__name__
        assert kinds == "CppScheduling", kinds
        """,
        tmp_path,
        installed,
    )


def test_the_triton_engine_prepares_a_launch_once_for_tensors_that_are_alike(monkeypatch):
    """Through Triton's own runtime, which here drives the CPU target."""
    found = []
    run = JITFunction.run
    monkeypatch.setattr(JITFunction, "run", lambda self, *args, **kw: found.append(self) or run(self, *args, **kw))
    start = engines.ENGINES["triton"].bind(launch.common.sum_splits_launch("sm_90", 3, 100))
    memory = torch.zeros(101)

    def check(out, times):
        partial = torch.randint(-9, 10, (3, 100)).float()
        start(partial, out)
        assert torch.equal(out, partial.sum(0).to(out.dtype))
        assert len(found) == times

    check(torch.empty(100), 1)
    check(torch.empty(100), 1)
    check(memory[1:], 2)  # not aligned
    check(memory[:100], 2)
    check(torch.empty(100, dtype=torch.float16), 3)


def test_the_triton_engine_gives_descriptors_to_what_takes_boxes():
    geometry = ConvGeometry(2, 16, 5, 9, 16, 3, 3, (1, 1), ((1, 1), (1, 1)))
    config = TileConfig(32, 16, 16, boxed=True)
    made = launch.conv.fprop_launch("sm_90", geometry, torch.float32, "ieee", None, config)
    start = engines.ENGINES["triton"].bind(made)
    for _ in range(2):  # through the JIT, then prepared
        x, weight = torch.randint(-3, 4, (2, 16, 5, 9)).float(), torch.randint(-3, 4, (16, 16, 3, 3)).float()
        panels = packing.panels(weight, geometry, "fprop", 16, keep=False)
        y = torch.empty(2, 16, 5, 9).contiguous(memory_format=torch.channels_last)
        start(x.contiguous(memory_format=torch.channels_last), panels, None, y, *(None,) * 7)
        assert torch.equal(y, torch.nn.functional.conv2d(x, weight, padding=1))
