"""Kernel packages: compiled in one place, run in another without compiling, refused where they do not match."""

import json
import shutil

import pytest
import torch
from torch import nn
from triton import knobs
from triton.backends.compiler import GPUTarget
from triton.runtime import driver

import autotune
import tritonconv
from autotune import store
from tritonconv import engines, tuning
from tritonconv.cpu import engine as native
from tritonconv.targets import compiling, machine_code, package

SIZE = (2, 3, 6, 6)


def network() -> nn.Module:
    torch.manual_seed(0)
    layers = nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(4, 2, 1)
    return nn.Sequential(*layers).eval()


@pytest.fixture(autouse=True)
def machine(tmp_path, monkeypatch):
    """Another machine: nothing is compiled or tuned there."""
    monkeypatch.setenv("TRITONCONV_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setattr(knobs.cache, "dir", str(tmp_path / "triton"))
    monkeypatch.setattr(native, "_kernels", {})
    tuning.forget()
    store.forget()
    yield tmp_path
    tuning.forget()


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A package for CPUs, with one config that was tuned."""
    folder = tmp_path_factory.mktemp("made")
    with store.at(folder / "tuned"):
        model = tritonconv.patch(network())
        key = next(key for key in tuning.problems(model, torch.zeros(SIZE)) if key["op"] == "fprop")
        autotune.record(key, {"BM": 64, "BN": 16, "BK": 4}, {"how": "measured", "date": "2026-01-01"})
        tuning.forget()
        compiling.compile_package(network(), torch.zeros(SIZE), "cpu", folder / "package")
    return folder / "package"


@pytest.fixture
def own(made, tmp_path):
    """A copy of the package, to be spoilt."""
    return shutil.copytree(made, tmp_path / "package")


def never(*_):
    raise AssertionError("something was compiled")


def test_a_package_runs_without_compiling(made, monkeypatch):
    x = torch.randn(SIZE)
    model = tritonconv.patch(network())
    loaded = tritonconv.load_package(made)
    assert (loaded.target, loaded.configs) == ("cpu", 1)
    monkeypatch.setattr(native.Request, "compile", never)
    with torch.no_grad():
        torch.testing.assert_close(model(x), network()(x))
        with pytest.raises(AssertionError, match="something was compiled"):
            model.double()(x.double())


def test_a_package_for_training_runs_without_compiling(machine, monkeypatch):
    x = torch.randn(SIZE)
    compiling.compile_package(network().train(), x, "cpu", machine / "training")
    monkeypatch.setenv("TRITONCONV_CACHE_DIR", str(machine / "another"))
    monkeypatch.setattr(native, "_kernels", {})
    tuning.forget()
    model, plain = tritonconv.patch(network().train()), network().train()
    tritonconv.load_package(machine / "training")
    monkeypatch.setattr(native.Request, "compile", never)
    for each in (model, plain):
        each(x).square().sum().backward()
    for ours, theirs in zip(model.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-4, atol=1e-4)


def test_configs_come_along_but_what_was_measured_later_stays(made):
    (entry,) = autotune.files.read(made / package.TUNED)
    autotune.record(entry["key"], {"BM": 1, "BN": 4, "BK": 2}, {"how": "measured", "date": "2026-02-02"})
    tritonconv.load_package(made)
    assert autotune.lookup(entry["key"])["BM"] == 1
    autotune.record(entry["key"], {"BM": 1, "BN": 4, "BK": 2}, {"how": "predicted", "date": "2026-02-02"})
    tritonconv.load_package(made)
    assert autotune.lookup(entry["key"]) == entry["config"]


def edit(change):
    def spoil(folder):
        manifest = json.loads((folder / "manifest.json").read_text())
        change(manifest)
        (folder / "manifest.json").write_text(json.dumps(manifest))

    return spoil


def kernel_of(folder):
    return next(folder.glob("kernels/*/*"))


def flip(folder):
    data = bytearray(kernel_of(folder).read_bytes())
    data[-1] ^= 1
    kernel_of(folder).write_bytes(data)


REFUSALS = {
    "a bit": (flip, "the checksum of kernels/.* does not match"),
    "a file": (lambda folder: kernel_of(folder).unlink(), "kernels/.* is missing"),
    "no manifest": (lambda folder: (folder / "manifest.json").unlink(), "it holds no manifest.json"),
    "no JSON": (lambda folder: (folder / "manifest.json").write_text("{"), "its manifest.json is damaged"),
    "no object": (lambda folder: (folder / "manifest.json").write_text("[]"), "its manifest.json is damaged"),
    "no files": (edit(lambda m: m.pop("files")), "its manifest.json is damaged"),
    "later": (edit(lambda m: m.update(schema=2)), "its schema is 2, not 1: it was made by a later version"),
    "triton": (edit(lambda m: m["toolchain"].update(triton="3.1")), "its triton is 3.1, and here it is 3"),
    "processor": (edit(lambda m: m["toolchain"].update(processor="z80")), "its processor is z80, and here it is"),
    "target": (edit(lambda m: m.update(target="sm_90")), "it is for sm_90, and here is"),
    "unknown": (edit(lambda m: m.update(target="sm_1")), "it is for 'sm_1', which this version does not know"),
    "elsewhere": (edit(lambda m: m["files"].update({"kernels/../x": ""})), "'kernels/../x' is no file of a package"),
    "absolute": (edit(lambda m: m["files"].update({"/etc/passwd": ""})), "'/etc/passwd' is no file of a package"),
}


@pytest.mark.parametrize("spoil", REFUSALS)
def test_what_does_not_match_is_refused_in_one_sentence_and_nothing_is_loaded(spoil, own, machine):
    change, message = REFUSALS[spoil]
    change(own)
    with pytest.raises(ValueError, match=f"package is not loaded: {message}") as error:
        tritonconv.load_package(own)
    assert "\n" not in str(error.value)
    assert not (machine / "cache").exists()


def test_a_store_of_a_later_version_is_refused(own):
    (own / package.TUNED).write_text(json.dumps({"schema": 9, "entries": []}))
    edit(lambda m: m["files"].update({package.TUNED: package.digest_of((own / package.TUNED).read_bytes())}))(own)
    with pytest.raises(ValueError, match="its schema is 9, not 1: it was written by a later version"):
        tritonconv.load_package(own)


def test_an_unknown_target_is_refused(tmp_path):
    with pytest.raises(ValueError, match="target must be one of cpu, sm_80, .*; got 'sm_1'"):
        compiling.compile_package(network(), torch.zeros(SIZE), "sm_1", tmp_path)


class Driver(type(driver.active)):
    """Of a GPU that is not here. Kernels are found or compiled for it; none can run."""

    def get_current_target(self):
        return GPUTarget("cuda", 80, 32)

    def get_current_device(self):
        return "an A100 that is not here"


@pytest.fixture
def gpu(monkeypatch):
    """An A100, as far as Triton's cache of kernels and this library can see."""
    monkeypatch.setattr(package, "_targets", lambda: {"sm_80"})
    before = driver.active
    driver.set_active(Driver())
    yield
    driver.set_active(before)


def test_on_a_gpu_triton_finds_the_kernels_of_a_package(machine, gpu, monkeypatch):
    """By the key that it makes on the GPU's machine: launched the library's way, nothing is compiled."""
    model = tritonconv.patch(nn.Sequential(nn.Conv2d(16, 16, 1), nn.ReLU()).half().eval())
    x = torch.zeros(2, 16, 4, 4, dtype=torch.float16)
    made = compiling.compile_package(model, x, "sm_80", machine / "package")
    assert "| conv_fprop " in (machine / "package" / package.REPORT).read_text()

    monkeypatch.setattr(knobs.cache, "dir", str(machine / "another"))
    monkeypatch.setattr(knobs.compilation, "listener", lambda **facts: found.append(facts["cache_hit"]))
    found = []

    def launch_all():
        with store.at(machine / "tuned"), engines.listing(x.device, "sm_80") as launches:
            tuning.run(tuning.hollow(model), x)
        for launch, dtypes in launches:
            launch.kernel.device_caches.clear()
            tensors = launch.operands([None if dtype is None else torch.empty(64, dtype=dtype) for dtype in dtypes])
            launch.kernel.warmup(*tensors, *launch.sizes, **launch.constexprs, **launch.options, grid=launch.grid)

    with store.at(machine / "tuned"):
        loaded = tritonconv.load_package(machine / "package")
    assert loaded.kernels == made.kernels
    launch_all()
    assert found == [True]
    shutil.rmtree(machine / "another")
    launch_all()
    assert found == [True, False]


def test_machine_code_names_the_files_that_a_machine_needs(tmp_path):
    from test_machine_code import Case

    name, files = machine_code.files(*Case("fprop", "1x1", torch.float16).launch("gfx942"), "gfx942")
    assert {file.partition(".")[2] for file in files} == {"json", "hsaco"}
    assert len(name) == 64
