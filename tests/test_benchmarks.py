"""What the benchmarks launch are the library's kernels as they are now; nothing is timed here."""

from benchmarks import predictor, startup
from tritonconv.cpu import engine


def test_startup_compiles_every_kernel_it_lists(tmp_path, monkeypatch):
    monkeypatch.setenv("TRITONCONV_CACHE_DIR", str(tmp_path))
    requests = {name: engine.request(made, dtypes) for name, made, dtypes in startup.kernels()}
    families = {request.kernel.__name__ for request in requests.values()}
    assert families > {"conv_fprop", "conv_dgrad", "conv_wgrad", "conv_winograd", "depthwise_fprop", "norm_backward"}
    for family in families:  # one of each: all of them take a while
        engine.load([next(request for request in requests.values() if request.kernel.__name__ == family)])


def test_a_launch_can_be_timed(monkeypatch):
    monkeypatch.setattr(startup, "LAUNCHES", 1)
    assert startup.launch_microseconds() > 0


def test_the_predictor_is_judged_by_what_launches_look_up():
    keys = predictor.keys()
    assert {key["op"] for key in keys} == {"fprop", "dgrad", "wgrad"}
