"""`tritonconv.tune` by several processes that share the work."""

import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = """
import sys, torch, torch.distributed as dist
from torch import nn
rank, address, own = int(sys.argv[1]), sys.argv[2], sys.argv[3]
dist.init_process_group("gloo", init_method=f"file://{address}", rank=rank, world_size=2)
torch.set_num_threads(1)
import autotune, tritonconv
from autotune import store
from pathlib import Path
model = tritonconv.patch(nn.Sequential(nn.Conv2d(1, 2, 1), nn.Conv2d(2, 2, 1)).eval())
with store.at(Path(own)):
    tuned = tritonconv.tune(model, torch.randn(1, 1, 4, 4))
    assert len(tuned.outcomes) == tuned.count("measured") == 4, tuned
    assert all(autotune.lookup(o.key) == o.config for o in tuned.outcomes)
    assert tritonconv.tune(model, torch.randn(1, 1, 4, 4)).count("measured") == 0
print("fine")
dist.destroy_process_group()
"""


DYING = """
import os
from autotune import session
measure, measured = session._one, []

def once(key, *rest):
    if rank == 1 and measured:
        os._exit(9)  # in the middle of its share
    measured.append(key)
    return measure(key, *rest)

session._one = once
model = tritonconv.patch(nn.Sequential(*(nn.Conv2d(C, C + 1, 1) for C in (1, 2, 3, 4))))
with store.at(Path(own)):
    tuned = tritonconv.tune(model.eval(), torch.randn(1, 1, 4, 4))
print(tuned.count("measured"))
"""


def test_a_rank_that_dies_loses_what_it_was_measuring(tmp_path):
    """The other one finishes its share, and the next run finds what both had stored."""
    program = PROGRAM[: PROGRAM.index("model =")] + DYING
    rank0, rank1 = (start(program, rank, tmp_path, tmp_path / "store") for rank in (0, 1))
    assert rank1.wait() == 9
    printed, complaints = rank0.communicate()
    assert rank0.returncode == 0, complaints
    assert "tune: a rank is lost, and with it what it was measuring" in complaints
    assert len(list((tmp_path / "store").glob("*.json"))) == int(printed) + 1 > 3


def start(program: str, rank: int, folder: Path, own: Path) -> subprocess.Popen:
    command = [sys.executable, "-c", program, str(rank), str(folder / "meet"), str(own)]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    return subprocess.Popen(command, **pipes, text=True, cwd=Path(__file__).parent.parent)


@pytest.mark.parametrize("shared", (False, True))
def test_ranks_share_the_work_and_all_have_the_results(shared, tmp_path):
    stores = [tmp_path / ("store" if shared else f"store{rank}") for rank in (0, 1)]
    processes = [start(PROGRAM, rank, tmp_path, stores[rank]) for rank in (0, 1)]
    assert [process.communicate()[0] for process in processes] == ["fine\n"] * 2
    names = [{path.name for path in folder.iterdir()} for folder in stores]
    assert names[0] == names[1]
    assert len(names[0]) == 4
