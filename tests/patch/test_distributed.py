"""Patched models trained by two processes over gloo: each rank ends where that of an unpatched twin does."""

import os
from datetime import timedelta

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from networks import NET_SITES, sample, sgd, statuses, trained, twins
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.nn.parallel import DistributedDataParallel
from torch.utils.checkpoint import checkpoint

import tritonconv

pytestmark = pytest.mark.skipif(not dist.is_gloo_available(), reason="torch was built without gloo")


def data_parallel(rank: int) -> None:
    for wrap in (lambda wrapped: wrapped, lambda wrapped: lambda x: checkpoint(wrapped, x, use_reentrant=False)):
        ends = []
        for model in twins():
            wrapped = DistributedDataParallel(model, static_graph=True)
            ends.append(trained(model, sgd(wrapped), wrap(wrapped), first=3 * rank))
        torch.testing.assert_close(*ends)
    with pytest.raises(TypeError, match="wrapped by DistributedDataParallel: patch first, then wrap"):
        tritonconv.patch(wrapped)


def fully_sharded(rank: int) -> None:
    """Parameters are sharded tensors but within a forward, and their memory is released after it."""
    patched, plain = twins()
    ends = []
    for model in (patched, plain):
        for module in (model.stem, model.conv, model):  # a block, a convolution within one, the rest
            fully_shard(module)
        optimizer, end = sgd(model), []
        for seed in (rank, 2 + rank):
            optimizer.zero_grad()
            F.cross_entropy(model.train()(sample(seed)), torch.tensor([0, 2])).backward()
            optimizer.step()
            with torch.no_grad():
                end += [model.eval()(sample(seed)), model(sample(seed))]
        ends.append(end + [getattr(value, "full_tensor", lambda v=value: v)() for value in model.state_dict().values()])
    torch.testing.assert_close(*ends)
    with pytest.raises(TypeError, match="wrapped by fully_shard: patch first, then wrap"):
        tritonconv.patch(plain)
    found = statuses(patched)
    assert found["stem.0"] == NET_SITES["stem.0"]
    assert found["conv"].startswith("swapped")  # sharded by itself, it has hooks
    tritonconv.unpatch(patched)
    assert isinstance(patched, FSDPModule)
    with torch.no_grad():
        torch.testing.assert_close(patched(sample()), plain(sample()))


def process(rank: int, rendezvous: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", f"file://{rendezvous}", timedelta(seconds=60), rank=rank, world_size=2)
    try:
        data_parallel(rank)
        fully_sharded(rank)
    finally:
        dist.destroy_process_group()
    # After fully_shard, be it of unpatched models, threads of gloo's are left, which could abort an exit as usual.
    os._exit(0)


def test_two_processes(tmp_path):
    torch.multiprocessing.spawn(process, (str(tmp_path / "rendezvous"),), nprocs=2)
