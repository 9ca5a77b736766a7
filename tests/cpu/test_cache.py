"""The cache of machine code: what is wrong on disk costs a rebuild and one warning, never a result."""

import multiprocessing
import os
import tempfile
import time
import warnings

import pytest
import torch
import triton
import triton.language as tl
from triton.runtime import driver

from tritonconv.cpu import build, cache, engine
from tritonconv.kernels import conv


@triton.jit
def double(x, out, n, BLOCK: tl.constexpr):
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.store(out + i, 2 * tl.load(x + i, mask=i < n), mask=i < n)


SIGNATURE = {"x": "*fp32", "out": "*fp32", "n": "i32", "BLOCK": "constexpr"}


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("TRITONCONV_CACHE_DIR", str(tmp_path))
    cache._warn.cache_clear()
    return tmp_path / "kernels"


@pytest.fixture
def compiles(monkeypatch):
    """Counts the kernels that LLVM compiles."""
    names = []
    assemble = build.assemble
    monkeypatch.setattr(build, "assemble", lambda low, target: names.append(low.name) or assemble(low, target))
    return names


def obtain(request: engine.Request) -> build.Binary:
    engine._kernels.clear()
    return engine.load([request])[0].binary


def compiled() -> build.Binary:
    return obtain(engine.Request(double, SIGNATURE, {"BLOCK": 64}))


def silent() -> build.Binary:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return compiled()


def only(folder):
    (path,) = folder.iterdir()
    return path


def test_second_start_reads_the_disk(folder, compiles):
    assert silent() == silent()
    assert compiles == ["double"]
    assert only(folder).stat().st_mode & 0o777 == 0o600
    assert folder.stat().st_mode & 0o777 == 0o700


def test_everything_that_shapes_the_code_is_in_the_key(folder, monkeypatch):
    silent()
    obtain(engine.Request(double, SIGNATURE, {"BLOCK": 32}))
    obtain(engine.Request(double, SIGNATURE, {"BLOCK": 64}, checked=True))
    obtain(engine.Request(double, SIGNATURE | {"x": "*fp16"}, {"BLOCK": 64}))
    monkeypatch.setattr(cache, "fingerprint", lambda: "another processor or compiler")
    silent()
    assert len(list(folder.iterdir())) == 5


def test_the_library_s_kernels_are_named_by_its_files(monkeypatch):
    signature, constexprs = {}, {}
    names = {engine.Request(kernel, signature, constexprs).name for kernel in (conv.conv_fprop, conv.conv_dgrad)}
    monkeypatch.setattr(build, "sources", lambda folder: "an edited file")
    names.add(engine.Request(conv.conv_fprop, signature, constexprs).name)
    assert len(names) == 3


def test_kernels_compiled_side_by_side(folder):
    requests = [engine.Request(double, SIGNATURE, {"BLOCK": block}) for block in (16, 32, 64, 32)]
    engine._kernels.clear()
    together = [kernel.binary for kernel in engine.load(requests)]
    assert len(list(folder.iterdir())) == 3
    assert together == [obtain(request) for request in requests]
    for path in folder.iterdir():
        path.unlink()
    assert together == [obtain(request) for request in requests]  # compiled here, one by one


DAMAGE = {
    "empty": lambda data: b"",
    "truncated": lambda data: data[: len(data) // 2],
    "without its last byte": lambda data: data[:-1],
    "flipped byte": lambda data: data[:-100] + bytes([data[-100] ^ 1]) + data[-99:],
    "flipped byte of the header": lambda data: data[:120] + bytes([data[120] ^ 1]) + data[121:],
    "foreign": lambda data: b"\x7fELF" + data[4:],
    "trailing bytes": lambda data: data + b"x",
    "of another kernel": lambda data: b"0" * 64 + data[64:],
}


@pytest.mark.parametrize("how", DAMAGE)
def test_damaged_file_is_built_again_with_one_warning(folder, compiles, how):
    whole = silent()
    path = only(folder)
    data = path.read_bytes()
    path.write_bytes(DAMAGE[how](data))
    with pytest.warns(RuntimeWarning, match="is built again") as caught:
        assert compiled() == whole
    assert len(caught) == 1 and compiles == ["double"] * 2
    assert path.read_bytes() == data
    path.write_bytes(DAMAGE[how](data))
    assert silent() == whole  # the same warning is not given twice


def test_file_that_cannot_be_read(folder, compiles):
    silent()
    path = only(folder)
    path.unlink()
    path.mkdir()
    with pytest.warns(RuntimeWarning, match="Is a directory"):
        compiled()
    assert compiles == ["double"] * 2


@pytest.mark.parametrize("mode", [0o777, 0o750, 0o704])
def test_folder_open_to_others_is_not_used(folder, compiles, mode):
    folder.mkdir()
    folder.chmod(mode)
    with pytest.warns(RuntimeWarning, match="must belong to this user alone") as caught:
        compiled()
        compiled()
    assert len(caught) == 1 and compiles == ["double"] * 2
    assert not list(folder.iterdir())


def test_folder_of_another_user_is_not_used(folder, monkeypatch):
    silent()
    monkeypatch.setattr(os, "getuid", lambda: os.stat(folder).st_uid + 1)
    with pytest.warns(RuntimeWarning, match="must belong to this user alone"):
        assert cache.find(only(folder).name) is None


def test_folder_that_cannot_be_made(folder, compiles):
    folder.parent.joinpath("kernels").write_text("a file is in the way")
    with pytest.warns(RuntimeWarning, match="kernels are not kept in .*: File exists") as caught:
        compiled()
        compiled()
    assert len(caught) == 1 and compiles == ["double"] * 2


def raises(error: OSError):
    def function(*args, **kwargs):
        raise error

    return function


@pytest.mark.parametrize("where", [(tempfile, "mkstemp"), (os, "fsync"), (os, "replace")], ids=lambda w: w[1])
@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), OSError(30, "Read-only file system")])
def test_disk_that_cannot_be_written(folder, compiles, monkeypatch, where, error):
    monkeypatch.setattr(*where, raises(error))
    with pytest.warns(RuntimeWarning, match=f"kernels are not kept in .*: {error.strerror}") as caught:
        compiled()
        compiled()
    assert len(caught) == 1 and compiles == ["double"] * 2
    assert not list(folder.iterdir())


def test_folder_that_disappears_is_made_again(folder, compiles):
    silent()
    only(folder).unlink()
    folder.rmdir()
    silent()
    silent()
    assert compiles == ["double"] * 2


FORK = multiprocessing.get_context("fork")


def contend():
    name, binary = cache.key("contended"), build.Binary("f", bytes(100_000), 0, ("ptr",))
    warnings.simplefilter("error")
    for _ in range(50):
        cache.keep(name, binary)
        assert cache.find(name) == binary


def test_eight_processes_write_and_read_one_key(folder):
    writers = [FORK.Process(target=contend) for _ in range(8)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join(60)
    assert [writer.exitcode for writer in writers] == [0] * 8
    assert only(folder).suffix == ""


def write_for_ever(begun):
    os.fsync = lambda handle: (begun.set(), time.sleep(600))
    cache.keep(cache.key("killed"), build.Binary("f", bytes(100_000), 0, ()))


def test_writer_killed_while_it_writes(folder):
    begun = FORK.Event()
    writer = FORK.Process(target=write_for_ever, args=(begun,))
    writer.start()
    assert begun.wait(60)
    writer.kill()
    writer.join()
    assert only(folder).suffix == ".tmp"  # what it had begun is never taken for a kernel
    assert cache.find(cache.key("killed")) is None
    whole = build.Binary("f", b"code", 0, ())
    cache.keep(cache.key("killed"), whole)
    assert cache.find(cache.key("killed")) == whole


def test_damaged_entry_of_tritons_own_cache(tmp_path, monkeypatch):
    monkeypatch.setattr(triton.knobs.cache, "dir", str(tmp_path))
    x, out = torch.arange(100.0), torch.zeros(100)

    def fresh():
        double.device_caches.pop(driver.active.get_current_device(), None)  # forget what is loaded
        double[(2,)](x, out.zero_(), 100, 64)
        assert torch.equal(out, 2 * x)

    fresh()
    (path,) = tmp_path.rglob("*.obj")
    data = path.read_bytes()
    path.write_bytes(data[:-10] + bytes(10))
    with pytest.warns(RuntimeWarning, match="built again: its checksum does not match") as caught:
        fresh()
        double[(2,)](x, out, 100, 64)
    assert len(caught) == 1
