"""Memory of results: as torch's own, but in huge pages where it is large, and used again."""

import contextlib
import copy
import gc
import mmap
import multiprocessing
import threading
import time
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import tritonconv.functional as TF
from tritonconv import patch
from tritonconv.launch import packing, room
from tritonconv.patching import patch as patching

MIB = 1 << 20
SETTING = Path("/sys/kernel/mm/transparent_hugepage/enabled")


def in_huge_pages(address: int) -> bool:
    """Whether the mapping around an address was asked to be: "hg" among its flags."""
    inside = False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        first, *rest = line.split()
        if "-" in first and ":" not in first:
            low, high = (int(end, 16) for end in first.split("-"))
            inside = low <= address < high
        elif inside and first == "VmFlags:":
            return "hg" in rest
    raise AssertionError(f"no mapping around {address:#x}")


def of(size: int) -> torch.Tensor:
    """A result of so many bytes."""
    return room.empty(torch.empty((), dtype=torch.uint8), (size,))


@pytest.fixture
def pool(monkeypatch) -> room.Pool:
    """One of its own, in which nothing is."""
    pool = room.Pool()
    for module in room, patching:
        monkeypatch.setattr(module, "results", pool)
    return pool


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("dtype", [None, torch.float16])
def test_like_torch_empty(dtype, memory_format):
    got = room.empty(torch.empty((), dtype=torch.float64), (3, 4109, 41, 17), dtype, memory_format)
    want = torch.empty((3, 4109, 41, 17), dtype=dtype or torch.float64, memory_format=memory_format)
    assert (got.dtype, got.shape, got.stride()) == (want.dtype, want.shape, want.stride())


@pytest.mark.skipif(not SETTING.exists(), reason="a system without huge pages")
def test_large_results_lie_in_huge_pages():
    x, w = torch.randn(1, 8, 256, 512).to(memory_format=torch.channels_last), torch.randn(64, 8, 1, 1)
    y = TF.conv2d(x, w)
    assert in_huge_pages(y.data_ptr() + y.nbytes // 2)


def test_what_is_freed_is_used_again(pool):
    first = of(8 * MIB)
    address = first.data_ptr()
    assert pool.used() == 8 * MIB
    view = first[:7]
    del first
    assert pool.used() == 8 * MIB  # a view has it yet
    del view
    assert pool.used() == 0
    again = of(7 * MIB)
    assert (again.data_ptr(), again.untyped_storage().nbytes()) == (address, 7 * MIB)
    assert of(3 * MIB).data_ptr() == address + 7 * MIB


def test_smallest_stretch_that_holds_it(pool):
    results = [of(size * MIB) for size in (10, 2, 8, 2, 9, 2)]
    first, second, third = (result.data_ptr() for result in results[::2])
    del results[::2]
    results += [of(size * MIB) for size in (9, 3, 10, 5)]
    assert [result.data_ptr() for result in results[-4:]] == [third, second, first, second + 3 * MIB]


def test_what_is_free_side_by_side_is_one(pool):
    results = [of(4 * MIB) for _ in range(4)]
    address = results[0].data_ptr()
    for dead in (0, 1, 0, 0):  # the first and the third, what lies between, the last
        del results[dead]
    assert of(16 * MIB).data_ptr() == address


@settings(max_examples=25, deadline=None)
@given(st.lists(st.integers(-8, 40), max_size=80))
def test_nothing_lies_over_another(turns):
    """A turn takes so many thousand bytes; a negative one lets so old a result die, if there is one."""
    pool, results = room.Pool(), []
    for number, turn in enumerate(turns):
        if turn > 0:
            with contextlib.suppress(MemoryError):
                results.append((number, torch.frombuffer(pool.take(1000 * turn), dtype=torch.uint8).fill_(number)))
        elif -turn < len(results):
            value, result = results.pop(-turn)
            assert (result == value).all()
            del result
    assert all((result == number).all() for number, result in results)
    assert pool.used() == sum(-(-result.numel() // mmap.PAGESIZE) * mmap.PAGESIZE for _, result in results)


def test_at_most_a_quarter_more_than_was_once_in_use(pool):
    results = [of(4 * MIB) for _ in range(16)]
    del results[::2]  # nowhere are more than 4 MiB free in a row
    results += [of(5 * MIB) for _ in range(4)]
    assert pool.used() == 8 * 4 * MIB + 3 * 5 * MIB  # within 80 MiB; torch has the last


def test_free_memory_can_be_given_back(pool):
    kept, gone = of(4 * MIB).fill_(1), of(8 * MIB).fill_(1)
    address = gone.data_ptr()
    del gone
    assert of(8 * MIB).sum() == 8 * MIB
    pool.release()
    again = of(8 * MIB)
    assert (again.data_ptr(), int(again.sum()), int(kept.sum())) == (address, 0, 4 * MIB)  # fresh memory is zero


def test_a_model_may_die_while_another_takes(pool, monkeypatch):
    for _ in range(2):
        results = [of(4 * MIB), of(8 * MIB)]
        results.clear()
    used = pool.used
    monkeypatch.setattr(pool, "used", lambda: (pool.release(), used())[1])
    assert of(4 * MIB).fill_(1).sum() == 4 * MIB
    assert of(20 * MIB).fill_(1).sum() == 20 * MIB


def test_a_patched_model_takes_it_along(pool):
    model = patch(nn.Sequential(nn.Conv2d(8, 64, 1)))
    with torch.no_grad():
        y = model(torch.ones(1, 8, 128, 256).to(memory_format=torch.channels_last))
    assert y.any()
    address = y.data_ptr()
    del y, model
    gc.collect()
    again = of(8 * MIB)
    assert again.data_ptr() == address
    assert not again.any()  # fresh memory is zero


def test_results_are_torchs_in_all_they_can_do(pool):
    y = room.empty(torch.empty(()), (4, 64, 64, 65), memory_format=torch.channels_last).fill_(2)
    assert not y._is_view()
    assert torch.equal(copy.deepcopy(y), y)
    y.requires_grad_().sum().backward()
    assert y.grad.stride() == y.stride()
    shared = y.detach().share_memory_()
    assert shared.is_shared()
    assert torch.equal(shared, torch.full_like(y, 2))


def test_threads_share_the_pool(pool):
    def work(value: int):
        for _ in range(50):
            results = [of(2 * MIB + 4096 * n).fill_(value) for n in range(3)]
            pool.release()
            found.extend((value, int(result.min()), int(result.max())) for result in results)

    found: list[tuple[int, int, int]] = []
    threads = [threading.Thread(target=work, args=(value,)) for value in (7, 9)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert set(found) == {(7, 7, 7), (9, 9, 9)}
    assert pool.used() == 0


def test_a_fork_waits_for_the_pool():
    def hold():
        with room.results.lock:
            held.set()
            time.sleep(0.1)

    held, child = threading.Event(), multiprocessing.get_context("fork").Process(target=of, args=(4 * MIB,))
    thread = threading.Thread(target=hold)
    thread.start()
    held.wait()
    child.start()
    child.join(20)
    child.kill()  # which does nothing to one that has ended
    thread.join()
    assert child.exitcode == 0


def test_too_large_is_refused_as_torch_does():
    with pytest.raises(RuntimeError, match="can't allocate memory"):
        of(1 << 50)


@pytest.mark.parametrize("shape", ((3, 5), (1, 700, 1000)))
def test_room_that_lasts(shape):
    got = room.lasting(shape, torch.float32, torch.device("cpu"))
    assert (got.dtype, got.shape, got.is_contiguous()) == (torch.float32, shape, True)
    got.fill_(1)


@pytest.mark.skipif(not SETTING.exists(), reason="a system without huge pages")
def test_large_packs_begin_with_a_huge_page():
    weight = torch.randn(512, 1030, 1, 1, requires_grad=True)
    with torch.no_grad():
        TF.conv2d(torch.randn(1, 1030, 2, 2), weight)
    (pack,) = packing.packs(weight)
    assert pack.data_ptr() % room.HUGE == 0
    assert in_huge_pages(pack.data_ptr())
    assert in_huge_pages(pack.data_ptr() + pack.nbytes - 1)


def test_autograd_adds_gradients_up_where_they_lie():
    x = torch.randn(1, 16, 256, 256).to(memory_format=torch.channels_last).requires_grad_()
    w = torch.randn(16, 16, 1, 1)
    y = TF.conv2d(x, w) * TF.conv2d(x, w) * TF.conv2d(x, w)
    with torch.profiler.profile() as profile:
        y.sum().backward()
    adds = {event.key: event.count for event in profile.key_averages() if event.key.startswith("aten::add")}
    assert adds == {"aten::add_": 2}


CALLS = {
    "conv2d": TF.conv2d,
    "conv_transpose2d": TF.conv_transpose2d,
    "batch_norm": lambda x, w: TF.batch_norm(x, None, None, w.sum((1, 2, 3)), None, True),
}


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
def test_a_gradient_in_other_memory_is_copied_once(call):
    x, weight = (torch.randn(size).to(memory_format=torch.channels_last) for size in ((2, 8, 9, 9), (8, 8, 3, 3)))
    y = call(x.requires_grad_(), weight.requires_grad_())
    with torch.profiler.profile() as profile:
        torch.autograd.backward(y, torch.randn(y.shape))
    assert sum(event.count for event in profile.key_averages() if event.key == "aten::clone") == 1
