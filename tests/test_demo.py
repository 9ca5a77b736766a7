"""The main job, on machine code in full and on the interpreter by its slice."""

import importlib.util
from pathlib import Path

import matplotlib.image
import pytest
import torch

from tritonconv import engines

SCRIPT = Path(__file__).parent.parent / "examples" / "digits.py"


@pytest.fixture(scope="module")
def digits():
    spec = importlib.util.spec_from_file_location("digits", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)  # tests run side by side
    yield
    torch.set_num_threads(before)


def test_in_full_both_networks_learn_the_digits_equally_well(digits, tmp_path, capsys):
    with engines.use("native"):
        plain, patched, nudged = digits.main(["--out", str(tmp_path / "new" / "curves.png")])
    assert len(plain.losses) == len(patched.losses) == 30 * 44
    # Before rounding has had time to grow, step by step; at the end, the accuracy.
    torch.testing.assert_close(patched.losses[:100], plain.losses[:100], rtol=1e-6, atol=0)
    assert min(plain.accuracies[-1], patched.accuracies[-1], nudged.accuracies[-1]) >= 0.97
    assert abs(patched.accuracies[-1] - plain.accuracies[-1]) <= 3 / 359

    printed = capsys.readouterr().out
    site = "conv1 │ conv2d+relu+max_pool2d │ fused"
    for text in (site, "engine: native", "1320/1320", f"{plain.accuracies[-1]:.2%}"):
        assert text in printed
    picture = matplotlib.image.imread(tmp_path / "new" / "curves.png")
    assert picture.shape[:2] == (840, 960)
    assert picture.std() > 0.05  # something is drawn on it


def test_on_the_interpreter_a_slice_does(digits, tmp_path, capsys):
    with engines.use("interpreter"):
        plain, patched, _ = digits.main(["--out", str(tmp_path / "curves.png"), "--epochs", "1"])
    assert len(plain.losses) == 8
    torch.testing.assert_close(patched.losses, plain.losses, rtol=1e-6, atol=0)
    assert "engine: interpreter" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--samples", "9"], "--samples must be from 160 to 1797, got 9"),
        (["--samples", "many"], "argument --samples: invalid int value: 'many'"),
        (["--epochs", "0"], "--epochs must be at least 1, got 0"),
        (["--out", "curves.pdf"], "--out must name a .png file, got curves.pdf"),
    ],
)
def test_a_wrong_option_is_named(digits, arguments, message, capsys):
    with pytest.raises(SystemExit):
        digits.main(arguments)
    assert message in capsys.readouterr().err
