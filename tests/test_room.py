"""Memory of results: as torch's own, but in huge pages where it is large."""

from pathlib import Path

import pytest
import torch

import tritonconv.functional as TF
from tritonconv.launch import packing, room

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
