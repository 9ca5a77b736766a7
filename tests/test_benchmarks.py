"""What the benchmarks launch are the library's kernels as they are now; no time is judged here."""

from contextlib import contextmanager

import pytest
import torch

from benchmarks import ceilings, kernels, layers, loading, measure, models, networks, predictor, scaling, training
from benchmarks.arithmetic import EXACT, MEASURED
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


@pytest.fixture
def gpu(monkeypatch):
    """What is measured takes this to be a GPU, on which replaying a captured call is to call it again."""
    monkeypatch.setattr(models, "DEVICE", torch.device("cuda"))
    monkeypatch.setattr(models, "captured", lambda run: run)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--arithmetic", "float16", "float32"], "--arithmetic must be float32 on a CPU, got float16 float32"),
        (["--arithmetic", "float64"], "invalid choice: 'float64'"),
        (["--prepare", "0"], "--prepare must be at least 1, got 0"),
    ],
)
def test_options_that_cannot_be_are_refused(arguments, said, capsys):
    for benchmark in networks, training:
        with pytest.raises(SystemExit):
            benchmark.main(arguments)
        assert said in capsys.readouterr().err


def test_a_gpu_takes_every_arithmetic(gpu):
    options = models.options_of("networks", "", (1,), ["--arithmetic", *MEASURED, "--prepare", "4"])
    assert options.arithmetic == ["float16", "bfloat16", "TF32", "float32"] and options.prepare == 4


def test_on_a_gpu_each_peer_is_measured_twice_and_prepared_once(gpu, monkeypatch):
    prepared, checked = [], []

    def make(peer):
        prepared.append(peer)
        return lambda: peer

    def capture(run):
        if run() == "stubborn":
            raise RuntimeError("cannot be captured")
        return lambda: f"{run()}, captured"

    def check(run):
        checked.append(run())
        if run() in ("wrong", "lost, captured"):
            raise ValueError("off")

    monkeypatch.setattr(models, "captured", capture)
    peers = {peer: lambda peer=peer: make(peer) for peer in (OURS, "wrong", "stubborn", "lost")}
    called, captured = models.compare_in_groups("TF32", 4, "net", peers, check, 0.0, rounds=1)
    assert (called.group, captured.group) == ("batch 4, TF32", "batch 4, TF32, captured")
    assert list(called.figures) == [OURS, "stubborn", "lost"] and list(captured.figures) == [OURS]
    refused = {"wrong": "ValueError: off", "stubborn": "RuntimeError: cannot be captured", "lost": "ValueError: off"}
    assert called.left_out == {"wrong": "ValueError: off"} and captured.left_out == refused
    assert prepared == list(peers) and checked == [*peers, f"{OURS}, captured", "lost, captured"]
    assert models.compare_in_groups("TF32", 4, "net", peers, check, None) == []


def test_a_call_is_captured_on_a_stream_of_its_own_and_replayed(monkeypatch):
    class Stream:
        def wait_stream(self, other):
            log.append("wait")

    class Graph:
        def replay(self):
            log.append("replay")
            y.fill_(2)

    @contextmanager
    def within(*what, stream):
        log.append("capture")
        yield
        log.append("captured")

    @contextmanager
    def on(stream):
        log.append("on")
        try:
            yield
        finally:
            log.append("off")

    def run():
        log.append("call")
        return [y]

    def fail():
        raise RuntimeError("not while a stream is captured")

    fakes = {"Stream": Stream, "current_stream": Stream, "CUDAGraph": Graph, "graph": within, "stream": on}
    for name, fake in fakes.items():
        monkeypatch.setattr(torch.cuda, name, fake)
    log, y = [], torch.ones(2)
    replay = models.captured(run)
    assert log == ["wait", "on", *["call"] * 3, "capture", "call", "captured", "off", "wait"]
    assert y.isnan().all()  # what a replay does not write shows
    assert replay() == [y] and y.tolist() == [2, 2] and log[-1] == "replay"
    with pytest.raises(RuntimeError, match="not while"):
        models.captured(fail)
    assert log[-1] == "off"


def test_a_row_that_fails_does_not_cost_the_others(capsys):
    options = models.options_of("networks", "", (1,), ["--only", "LeNet-5", "--batch", "2", "1", "--prepare", "2"])
    failed, right = models.rows(only_one_image, options)
    assert (failed.group, right.group) == ("batch 2", "batch 1") and right.figures == {OURS: (1, 1, 1)}
    assert not failed.figures and failed.left_out == {OURS: "ValueError: 2 images"}
    options.minutes, options.prepare = 1e-9, 1
    assert models.rows(only_one_image, options) == []
    assert "no time left for float32, 2, LeNet-5\n" in capsys.readouterr().out


def only_one_image(arithmetic, batch, name, seconds):
    if batch > 1:
        raise ValueError(f"{batch} images")
    return [] if seconds is None else [models.Row(models.group_of(arithmetic, batch), name, "ms", {OURS: (1, 1, 1)})]


def test_gradients_are_judged_beside_those_in_float64(gpu):
    """In bfloat16, by autocast; and a step returns the gradients that a replay would write."""
    model, x = networks.NETWORKS["LeNet-5"].build(), torch.randn(2, 1, 32, 32)
    theirs, ours = training.PEERS["torch NCHW"], training.PEERS[OURS]
    exact = training.gradient(training.step_of(theirs, model.double(), x.double(), EXACT)[0])
    step, _ = training.step_of(ours, model.float(), x, MEASURED["bfloat16"])
    training.check(exact, 0.1, step)
    with pytest.raises(ValueError, match="its gradient is off by .* of its length, so it is not timed"):
        training.check(exact, 1e-4, step)  # bfloat16 has 8 bits
    for gradient in step():
        gradient.fill_(float("nan"))
    training.check(exact, 0.1, step)
    with pytest.raises(ValueError, match="off by nan"):
        training.check(exact, 0.1, lambda: [torch.full_like(exact, float("nan"))])


def test_results_of_a_gpu_are_kept_apart(tmp_path, monkeypatch):
    monkeypatch.setattr(measure, "RESULTS", tmp_path)
    assert measure.save("networks", []).name == "networks.json"
    monkeypatch.setattr(measure, "DEVICE", torch.device("cuda"))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "a GPU")
    found = measure.load(measure.save("networks", []))
    assert found["benchmark"] == "networks-gpu" and found["machine"]["processor"] == "a GPU"
    assert found["commit"] == "unknown"  # there is no checkout


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
