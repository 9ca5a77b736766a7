"""Launches from threads, forks and parallel regions; grids, views and arguments of every kind."""

import ctypes
import multiprocessing
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import pytest
import torch
import triton
import triton.language as tl

from benchmarks import programs
from tritonconv.cpu import cache, crew, driver, engine, jit, runtime
from tritonconv.engines import Launch

FORK = multiprocessing.get_context("fork")


@triton.jit
def gram(x, out, n, BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr):
    """out [programs, BM]: a function of each program's block of x, by way of products, which need scratch memory."""
    m, k = tl.arange(0, BM), tl.arange(0, BK)
    pid = tl.program_id(0)
    a = tl.load(x + (pid % n) * BM * BK + m[:, None] * BK + k[None, :])  # [BM, BK]
    a = tl.exp(a)
    g = tl.dot(a, tl.trans(a), input_precision="ieee")
    tl.store(out + pid * BM + m, tl.sum(tl.dot(g, g, input_precision="ieee"), 1))


class Gram:
    """A launch of `gram` and what torch says of it. Torch's own products do not survive a fork; `run` has none."""

    def __init__(self, seed: int, programs: int = 64):
        self.x = torch.rand(8, 16, 32, generator=torch.Generator().manual_seed(seed))
        g = self.x.double().exp() @ self.x.double().exp().mT
        self.expected = (g @ g).sum(-1).float().repeat(programs // 8, 1)

    def run(self):
        out = torch.zeros_like(self.expected)
        gram[(len(out),)](self.x, out, 8, 16, 16, 32)
        torch.testing.assert_close(out, self.expected, rtol=1e-5, atol=0)


@pytest.fixture
def threads():
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def test_many_python_threads_at_once(threads):
    torch.set_num_threads(2)
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda seed: Gram(seed).run(), range(24)))


def test_threads_that_compile_at_once():
    """Kernels that nobody has compiled yet, some of them the same."""
    x = torch.randn(100)

    def run(block: int):
        out = torch.zeros(100)
        launch = Launch(programs.gelu, (-(-100 // block), 1, 1), (100,), {"BLOCK": block}, 1, 1)
        engine.bind(launch)(x, out)
        torch.testing.assert_close(out, torch.nn.functional.gelu(x))

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(run, [1, 2, 4, 8, 16, 32, 64, 128] * 2))


def test_number_of_threads_may_change(threads):
    for count in (1, 4, 2, 16, 3):
        torch.set_num_threads(count)
        Gram(count).run()


def test_scratch_grows_with_the_kernel_and_the_threads(threads):
    def sizes():
        for count in (1, 2, 32):
            torch.set_num_threads(count)
            Gram(0).run()
            yield runtime._local.memory.numel()

    with ThreadPoolExecutor(1) as pool:  # a thread that has no scratch yet
        small, larger, largest = pool.submit(lambda: list(sizes())).result()
    assert small < larger < largest


@triton.jit
def who(out, BLOCK: tl.constexpr):
    tl.store(out + tl.program_id(0), tl.program_id(0) + 1)


def test_inside_a_parallel_region():
    """A kernel launched by each of the threads of an OpenMP region runs on that thread alone."""
    parallel = crew.openmp()[0]
    if not parallel:
        pytest.skip("this torch has no OpenMP library")
    one = Gram(0)
    one.run()
    errors, ran = [], []

    def region(_):
        try:
            one.run()
            ran.append(threading.get_ident())
        except BaseException as error:
            errors.append(error)

    callback = ctypes.CFUNCTYPE(None, ctypes.c_void_p)(region)
    call = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint)(parallel)
    call(ctypes.cast(callback, ctypes.c_void_p), None, 4, 0)
    assert not errors and len(set(ran)) == 4


@triton.jit
def turned(x, out, n, BLOCK: tl.constexpr):
    """out[i] = x[n − 1 − i] + 1: what another thread has written, mostly."""
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.store(out + i, tl.load(x + n - 1 - i, mask=i < n) + 1, mask=i < n)


@pytest.mark.parametrize("count", (1, 2, 3, 16))
def test_jobs_in_a_row_wait_for_each_other(count, threads):
    """Of one program, of less than there are threads, and of many; more threads than this machine has cores."""
    torch.set_num_threads(count)
    n, blocks = 1000, [1024, 512, 32, 2, 512, 8, 1024, 1] * 8
    launches = [Launch(turned, (-(-n // block), 1, 1), (n,), {"BLOCK": block}, 1, 1) for block in blocks]
    kernels = engine.load_launches([(launch, (torch.int64, torch.int64)) for launch in launches])
    rows = torch.zeros(1 + len(blocks), n, dtype=torch.int64)
    rows[0] = torch.arange(n)
    jobs = [
        ctypes.create_string_buffer(kernel.job(launch.grid, [x.data_ptr(), y.data_ptr(), n], lambda size: 0))
        for kernel, launch, x, y in zip(kernels, launches, rows, rows[1:], strict=False)
    ]
    addresses = (ctypes.c_void_p * len(jobs))(*map(ctypes.addressof, jobs))
    segment = (ctypes.c_void_p * 4)(ctypes.addressof(addresses), len(jobs), None, 0)
    for _ in range(20):
        rows[1:] = 0
        crew.pool().run(ctypes.addressof(segment), None)
        assert torch.equal(rows[-1], torch.arange(n) + len(jobs))


def finish(process) -> int:
    process.start()
    process.join(60)
    process.kill()
    return process.exitcode


def test_child_of_a_fork(threads):
    torch.set_num_threads(2)
    one = Gram(0)
    one.run()  # the parent's threads are running
    assert finish(FORK.Process(target=one.run)) == 0
    one.run()


def compile_anew():
    """Compiles, loads and runs a kernel. Torch does as little as it can: its own threads do not survive a fork."""
    x, out = torch.arange(64.0), torch.zeros(64)
    engine._kernels.clear()
    engine.bind(Launch(programs.add, (1, 1, 1), (64,), {"BLOCK": 64}, 1, 1))(x, x, out)
    assert out.tolist() == [2 * i for i in range(64)]


def test_fork_while_other_threads_compile_and_launch(threads, monkeypatch):
    monkeypatch.setattr(cache, "find", lambda name: None)
    torch.set_num_threads(2)
    compile_anew()
    one, stop = Gram(3), threading.Event()

    def busy():
        while not stop.is_set():
            compile_anew()
            one.run()

    others = [threading.Thread(target=busy) for _ in range(2)]
    for thread in others:
        thread.start()
    try:
        assert [finish(FORK.Process(target=compile_anew)) for _ in range(10)] == [0] * 10
    finally:
        stop.set()
        for thread in others:
            thread.join()


def test_fork_waits_for_the_compiler():
    """A child would wait in vain for a thread that it does not have."""
    inside = threading.Event()

    def compile_slowly():
        with jit.lock:
            inside.set()
            time.sleep(0.5)

    with ThreadPoolExecutor(1) as pool:
        pool.submit(compile_slowly)
        inside.wait()
        assert finish(FORK.Process(target=compile_anew)) == 0


class Kernels(torch.utils.data.Dataset):
    def __len__(self):
        return 8

    def __getitem__(self, i):
        x, out = torch.full((300,), float(i)), torch.zeros(300)
        programs.add[(3,)](x, x, out, 300, 128)
        return out


def test_data_loader_workers():
    Gram(0).run()
    options = {"batch_size": 2, "num_workers": 2, "multiprocessing_context": "fork", "timeout": 60}
    batches = list(torch.utils.data.DataLoader(Kernels(), **options))
    assert torch.equal(torch.cat(batches), 2 * torch.arange(8.0)[:, None].expand(8, 300))


@pytest.mark.parametrize("grid", [(0,), (0, 3), (4, 0, 2), (2, 2, 0)])
def test_empty_grid(grid):
    out = torch.zeros(4)
    who[grid](out, 1)
    assert out.eq(0).all()


@pytest.mark.parametrize("programs", [1, 2, 31, 1000])
def test_every_program_runs_once(programs):
    out = torch.zeros(programs, dtype=torch.int32)
    who[(programs,)](out, 1)
    assert torch.equal(out, torch.arange(1, programs + 1, dtype=torch.int32))


def test_views():
    """A launch gets the address of a tensor's first element, whatever its strides and offset."""
    base, out = torch.randn(40, 10), torch.zeros(400)
    programs.add[(1,)](base[7:], base.T[:, 5:], out[100:], 100, 128)
    flat = base.flatten()
    assert torch.equal(out[100:200], flat[70:170] + flat[50:150])
    assert out[:100].eq(0).all() and out[200:].eq(0).all()


def test_default_device_does_not_matter():
    with torch.device("meta"), ThreadPoolExecutor(1) as pool:  # a thread that has no scratch yet
        pool.submit(lambda: torch.set_default_device("meta")).result()
        x, out = torch.zeros(8, 16, 32, device="cpu"), torch.zeros(64, 16, device="cpu")
        pool.submit(lambda: gram[(64,)](x, out, 8, 16, 16, 32)).result()
    assert out.eq(16 * 32 * 32 * 16).all()


def test_tensor_of_another_device():
    out = torch.zeros(4)
    with pytest.raises(ValueError, match="given a tensor on meta"):
        programs.add[(1,)](torch.zeros(4, device="meta"), out, out, 4, 16)
    with pytest.raises(ValueError, match="given a tensor on cuda:1"):
        runtime.address_of(SimpleNamespace(device=torch.device("cuda", 1), data_ptr=lambda: 1 << 40))


def test_gpu_comes_first(monkeypatch):
    monkeypatch.delenv("TRITON_DEFAULT_BACKEND", raising=False)
    assert driver.CPUDriver.is_active()
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert not driver.CPUDriver.is_active()
    monkeypatch.setenv("TRITON_DEFAULT_BACKEND", "tritonconv_cpu")
    assert driver.CPUDriver.is_active()


@triton.jit
def unsigned(out, a: tl.uint8, b: tl.uint16, c: tl.uint32, d: tl.uint64):
    tl.store(out, a)
    tl.store(out + 1, b)
    tl.store(out + 2, c)
    tl.store(out + 3, d)


def test_unsigned_arguments():
    out = torch.zeros(4, dtype=torch.uint64)
    numbers = [2**8 - 1, 2**16 - 1, 2**32 - 1, 2**64 - 1]
    unsigned[(1,)](out, *numbers)
    assert out.tolist() == numbers


def test_argument_that_does_not_fit_is_refused():
    x = torch.zeros(4)
    launch = Launch(programs.add, (1, 1, 1), ("four",), {"BLOCK": 16}, 1, 1)
    with pytest.raises(TypeError):
        engine.bind(launch)(x, x, x)
