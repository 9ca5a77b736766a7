"""What the benchmarks launch are the library's kernels as they are now; no time is judged here."""

import pytest
import torch

from benchmarks import ceilings, kernels, layers, loading, predictor, scaling
from benchmarks.comparison import OURS, parser
from tritonconv import timing
from tritonconv.cpu import engine


def test_loading_compiles_every_kernel_it_lists(tmp_path, monkeypatch):
    monkeypatch.setenv("TRITONCONV_CACHE_DIR", str(tmp_path))
    requests = {name: engine.request(made, dtypes) for name, made, dtypes in loading.kernels()}
    families = {request.kernel.__name__ for request in requests.values()}
    assert families > {"conv_fprop", "conv_dgrad", "conv_wgrad", "conv_winograd", "depthwise_fprop", "norm_backward"}
    for family in families:  # one of each: all of them take a while
        engine.load([next(request for request in requests.values() if request.kernel.__name__ == family)])


def test_a_launch_can_be_timed(monkeypatch):
    monkeypatch.setattr(loading, "LAUNCHES", 1)
    assert all(microseconds > 0 for microseconds in loading.launch_microseconds())


def test_the_predictor_is_judged_by_what_launches_look_up():
    keys = predictor.keys()
    assert {key["op"] for key in keys} == {"fprop", "dgrad", "wgrad", "winograd", "winograd_wgrad"}


def test_functions_take_turns():
    calls = []
    times = timing.turns((lambda: calls.append("a"), lambda: calls.append("b")), seconds=0, rounds=3, warm=2)
    assert calls == ["a", "b"] * 5 and [len(mine) for mine in times] == [3, 3]


def test_a_short_function_is_called_often_in_its_turn_and_a_long_one_once(monkeypatch):
    calls, took = [], {"short": 0.003, "long": 0.02}

    def seconds(function, count, device):
        name = [function() for _ in range(count)][0]
        calls.append((name, count))
        return took[name]

    def function(name):
        calls.append(name)
        return name

    monkeypatch.setattr(timing, "_seconds", seconds)
    functions = (lambda: function("short")), (lambda: function("long"))
    times = timing.turns(functions, 0, rounds=1, warm=1, least=0.01)
    assert calls[:4] == ["short", ("short", 1), "long", ("long", 1)]  # to warm up
    assert calls[4:] == ["short"] * (3 + 3) + [("short", 3), "long", ("long", 1)] and times == [[0.003], [0.02]]


def test_a_gpu_is_timed_by_its_own_events(monkeypatch):
    class Event:
        def __init__(self, enable_timing):
            assert enable_timing

        def record(self):
            log.append("record")

        def synchronize(self):
            log.append("wait")

        def elapsed_time(self, end):
            return 12.0  # milliseconds

    log = []
    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: log.append("wait"))
    monkeypatch.setattr(torch.cuda, "device", lambda device: torch.no_grad())
    assert timing._seconds(lambda: log.append("call"), 3, torch.device("cuda")) == pytest.approx(0.004)
    assert log == ["wait", "record", "call", "call", "call", "record", "wait"]


def test_ceilings_are_measured_by_kernels_that_compute_what_they_say():
    with ceilings.DEVICE:
        y = torch.empty(2 * 64)
        ceilings._bound(ceilings.programs.fma_chains, 2, 1, BLOCK=64)(y)
        want = torch.arange(64, dtype=torch.float64)
        for _ in range(8):
            want = want * 0.999 + 0.001
        torch.testing.assert_close(y.double(), want.repeat(2), rtol=1e-6, atol=1e-6)
        x, sums, copied = torch.arange(2.0 * 3 * 64), torch.empty(2 * 64), torch.empty(2 * 3 * 64)
        ceilings._bound(ceilings.programs.read, 2, 3, BLOCK=64)(x, sums)
        assert torch.equal(sums.view(2, 64), x.view(2, 3, 64).sum(1))
        ceilings._bound(ceilings.programs.copy, 3, BLOCK=128)(x, copied)
        assert torch.equal(copied, x)
        products = torch.empty(2, dtype=torch.int32)
        ceilings._bound(ceilings.programs.products, 2, 1)(products)
        assert [product % 2**32 for product in products.tolist()] == [pow(3, 256, 2**32), pow(5, 256, 2**32)]


LIMIT = ceilings.Ceilings(1e11, dict.fromkeys(ceilings.SIZES, 1e10), None, 2)


def test_every_direction_of_every_layer_computes_what_torch_does():
    options = parser("kernels", "", seconds=0.0).parse_args([])
    options.compile = False
    (found,) = layers.unique(["DCGAN discriminator"])
    assert [layer.kind for layer in found] == ["stem", "larger", "larger", "larger", "larger"]
    for direction in kernels.DIRECTIONS:
        row = kernels.measure(found[0], direction, LIMIT, options)
        assert not row.left_out and set(row.figures) == {OURS, "torch NCHW", "torch channels_last"}
        assert row.facts["flops"] == 2 * 32**2 * 4**2 * 3 * 128 and row.facts["networks"] == ["DCGAN discriminator"]


def test_layers_are_listed_once():
    first, second = layers.unique(["LeNet-5", "LeNet-5"])
    assert [layer.name for layer in first][:2] == ["conv2d+tanh 5×5 1→6 @ 32²", "avg_pool2d 2×2/2 6 @ 28²"]
    kinds = ["stem", "pooling", "larger", "pooling", "larger", "fully connected", "fully connected"]
    assert [layer.kind for layer in first] == kinds and not second


def test_a_wrong_result_is_not_timed():
    want = torch.ones(3)
    assert kernels.checked(lambda: lambda: want, want, 0.0)() is want
    with pytest.raises(ValueError, match=r"its result is off by 1.0e\+00 of the length, so it is not timed"):
        kernels.checked(lambda: lambda: 2 * want, want, 1e-4)
    with pytest.raises(ValueError, match="off by nan"):
        kernels.checked(lambda: lambda: want * float("nan"), want, 1e-4)


def test_scaling_measures_a_block_of_each_size():
    with torch.no_grad():
        row = scaling.measure("channels", 8, scaling.Block(C=8, H=7, threads=1), 0.0)
    assert not row.left_out and row.facts == {"value": 8, "flops": 2 * 9 * 64 * 49}


def test_winograds_algorithm_saves_products():
    tiles = (1, (3, 3)), (2, (3, 3)), (4, (3, 3)), (2, (5, 5)), (4, (1, 3))
    assert [kernels.saving(*tile) for tile in tiles] == pytest.approx([1, 2.25, 4, 100 / 36, 2])
    strided = (4, (4, 4), (2, 2)), (2, (4, 4), (2, 2)), (4, (5, 5), (2, 2))
    assert [kernels.saving(*tile) for tile in strided] == pytest.approx([2.56, 16 / 9, 400 / 144])
    (found,) = layers.unique(["Context"])
    three = next(layer for layer in found if layer.kind == "3×3" and layer.step.geometry.C >= 16)
    assert kernels.algorithm(three, "forward")[0] == three.step.algorithm
    assert kernels.algorithm(three, "wgrad") == ("implicit GEMM", 1)
    assert kernels.algorithm(three, "dgrad")[0] in ("Winograd", "implicit GEMM")
