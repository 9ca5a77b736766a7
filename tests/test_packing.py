"""Packed weights: their layout, and that a pack never outlives what it was made from."""

import gc
import weakref

import pytest
import torch
from cases import ConvCase, integers
from torch.utils.weak import WeakIdKeyDictionary

from tritonconv.functional import conv2d
from tritonconv.launch import packing

CASE = ConvCase((1, 6, 5, 5), (10, 3, 2), groups=2)


@pytest.fixture
def weight():
    return integers(CASE.weight, torch.float32)


def pack(weight, layout="fprop", BN=4, keep=True):
    return packing.panels(weight, CASE.geometry, layout, BN, keep)


LAID = {
    "NCHW": torch.Tensor.contiguous,
    "NHWC": lambda weight: weight.contiguous(memory_format=torch.channels_last),
    "turned": lambda weight: weight.transpose(2, 3).contiguous().transpose(2, 3),
    "of a whole": lambda weight: torch.cat((weight, weight), 1)[:, : weight.shape[1]],
}


@pytest.mark.parametrize("keep", (True, False), ids=("kept", "by a kernel"))
@pytest.mark.parametrize("laid", LAID)
def test_panels_hold_each_weight_at_its_place(weight, laid, keep):
    weight = LAID[laid](weight)
    fprop, dgrad = pack(weight, keep=keep), pack(weight, "dgrad", keep=keep)
    assert fprop.shape == (2, 2, 6 * 3, 4)
    assert dgrad.shape == (2, 1, 6 * 5, 4)
    g, k, c, r, s = 1, 4, 2, 2, 1
    value = weight[g * 5 + k, c, r, s]
    assert fprop[g, k // 4, (r * 2 + s) * 3 + c, k % 4] == value
    assert dgrad[g, 0, (r * 2 + s) * 5 + k, c] == value
    spread = pack(weight, "spread", keep=keep)
    assert spread.shape == (2, 5, 5, 4)  # 18 columns
    column = (r * 2 + s) * 3 + c
    assert spread[g, column // 4, k, column % 4] == value
    assert (fprop[:, 1, :, 1:] == 0).all()
    assert (dgrad[..., 3] == 0).all()


def test_a_pack_is_made_once(weight):
    assert pack(weight) is pack(weight)
    assert pack(weight) is not pack(weight, "dgrad")
    assert pack(weight) is not pack(weight, BN=8)
    assert pack(weight, keep=False) is not pack(weight, keep=False)


@pytest.mark.parametrize("BN", (2, 8))
def test_panels_of_a_pack_in_other_tiles(weight, BN):
    tiles = packing.in_tiles(pack(weight), BN)
    assert torch.equal(tiles, pack(weight.clone(), BN=BN))
    assert pack(weight, BN=BN) is tiles
    assert packing.in_tiles(pack(weight, keep=False), BN) is None


def test_others_pack_while_panels_are_looked_for(weight, monkeypatch):
    class Seen(dict):
        def items(self):
            others.append(weight.clone())
            pack(others[-1])  # as another thread may, then
            return super().items()

    kept, others = WeakIdKeyDictionary(), []
    monkeypatch.setattr(packing, "_kept", kept)
    kept[weight] = packing.Snapshot.of(weight), Seen()
    assert packing.in_tiles(weight, 8) is None
    assert len(others) == 1


def _replace(weight):
    weight.data = weight.data + 1


CHANGES = {
    "in place": lambda w: w.add_(1),
    "of one element": lambda w: w[4, 2].fill_(9),
    "through a view": lambda w: w.view(-1)[-1:].add_(1),
    "through data": lambda w: w.data.mul_(0.9),
    "of the storage": _replace,
    "through an alias": lambda w: w.detach().zero_(),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_a_changed_weight_is_packed_anew(weight, change):
    pack(weight)
    change(weight)
    assert torch.equal(pack(weight), pack(weight, keep=False))


def test_packs_go_with_their_weight():
    weight = integers(CASE.weight, torch.float32)
    panels = weakref.ref(pack(weight))
    assert panels() is not None
    del weight
    gc.collect()
    assert panels() is None


def test_inference_tensors_are_packed_each_time():
    with torch.inference_mode():
        weight = integers(CASE.weight, torch.float32)
        stale = pack(weight).clone()
        weight.add_(1)
        assert not torch.equal(pack(weight), stale)


def test_training_sees_every_change_and_keeps_nothing(device):
    x, weight = integers(CASE.input, torch.float32, device), integers(CASE.weight, torch.float32, device)
    weight.requires_grad_()
    x.requires_grad_()
    for _ in range(2):
        y = conv2d(x, weight, groups=2)
        want = torch.nn.functional.conv2d(x, weight, groups=2)
        assert torch.equal(y, want)
        for got, expected in zip(
            torch.autograd.grad(y.sum(), (x, weight)), torch.autograd.grad(want.sum(), (x, weight)), strict=True
        ):
            assert torch.equal(got, expected)
        weight.data[-1, -1, -1, -1] += 1  # invisible to version counter and probe
    assert weight not in packing._kept
