"""Which engine runs a kernel."""

import pytest
import torch

from tritonconv import engines, launch
from tritonconv.functional import conv2d

CPU, META = torch.device("cpu"), torch.device("meta")


def test_pinning_nests_and_ends():
    preferred = engines.engine_for(CPU)
    with engines.use("interpreter"):
        assert engines.engine_for(CPU).name == "interpreter"
        with pytest.raises(ZeroDivisionError), engines.use(preferred.name):
            assert engines.engine_for(CPU) is preferred
            raise ZeroDivisionError
        assert engines.engine_for(CPU).name == "interpreter"
    assert engines.engine_for(CPU) is preferred


def test_the_interpreter_is_always_available():
    assert engines.available()[-1] == "interpreter"


def test_an_unknown_engine_is_refused():
    with pytest.raises(ValueError, match=r"engine must be one of .*interpreter; got 'gpu'"), engines.use("gpu"):
        pass


def test_a_device_without_an_engine_is_torchs():
    assert engines.engine_for(META) is None
    x, weight = torch.ones(1, 3, 5, 5, device=META), torch.ones(4, 3, 3, 3, device=META)
    assert conv2d(x, weight).shape == (1, 4, 3, 3)


def test_an_error_of_an_engine_is_not_swallowed(monkeypatch):
    def bind(launch):
        raise OSError("no space left")

    engine = engines.Engine("broken", ("cpu",), bind, lambda device: "cpu", lambda: True)
    monkeypatch.setitem(engines.ENGINES, "broken", engine)
    with engines.use("broken"), pytest.raises(OSError, match="no space left"):
        conv2d(torch.ones(1, 3, 5, 5), torch.ones(4, 3, 3, 3))


def test_a_listing_runs_nothing():
    x, weight = torch.randn(1, 2, 6, 6), torch.randn(3, 2, 1, 1)
    with engines.listing(x.device) as launches:
        y = conv2d(x, weight)
    assert y.isnan().all()  # what the tests' empty memory holds
    ((made, dtypes),) = launches
    assert made.kernel is launch.conv.conv.conv_fprop
    assert dtypes == (torch.float32, torch.float32, None, torch.float32) + (None,) * 7
    assert torch.equal(conv2d(x, weight), conv2d(x, weight))
