"""The command line: what it prints, and how it fails."""

import json
import signal
import subprocess
import sys
import time
import warnings
from collections import Counter
from pathlib import Path

import pytest

from tritonconv import cli, tuning
from tritonconv.patching import trial

ROOT = Path(__file__).parent.parent

NETWORKS = """
from torch import nn

def small():
    return nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2))

built = small()

def number():
    return 3

def broken():
    raise KeyError("weights.pt")

def asserts():
    assert not built

def linear():
    return nn.Linear(2, 2)

def wide(width):
    return small()

NAME = "small"
"""
SMALL = ("--input", "1x3x8x8")


@pytest.fixture
def networks(tmp_path, monkeypatch):
    """A file of networks; imported anew by each test."""
    path = tmp_path / "some_networks.py"
    path.write_text(NETWORKS)
    monkeypatch.setattr(sys, "path", sys.path.copy())
    monkeypatch.chdir(tmp_path)
    yield path
    sys.modules.pop("some_networks", None)


@pytest.mark.parametrize("name", ["small", "built"])
@pytest.mark.parametrize("command", ["plan", "summary", "report"])
def test_commands_print_a_table_and_json(command, name, networks, capsys, monkeypatch):
    monkeypatch.setattr(trial.Piece, "times", lambda piece, device: [[2.0], [1.0]])  # torch's, and ours
    assert cli.main([command, f"{networks}:{name}", *SMALL]) == 0
    assert "conv2d+relu" in capsys.readouterr().out
    assert cli.main([command, f"some_networks:{name}", *SMALL, "--json", "--dtype", "float64"]) == 0
    assert json.loads(capsys.readouterr().out)["model"] == "Sequential"


def test_a_warning_is_one_sentence(networks, capsys):
    assert cli.main(["report", f"{networks}:linear", "--input", "1x2"]) == 0
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("tritonconv report: patch: none of the 0 sites of Linear is patched")


def test_bench_prints_both_times(networks, capsys, monkeypatch):
    monkeypatch.setattr(cli, "SECONDS", 0.0)
    assert cli.main(["bench", f"{networks}:small", *SMALL, "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["torch_divided_by_tritonconv"] == pytest.approx(facts["torch_ms"] / facts["tritonconv_ms"])


def test_env_names_what_runs_here(capsys):
    assert cli.main(["env", "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["python"].split(".")[0] == "3"
    assert {"native", "interpreter"} <= set(facts["engines"].split())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["plan"], "the following arguments are required: MODULE:FACTORY, --input"),
        (["plan", "net.py", *SMALL], "'net.py' is not of the form MODULE:FACTORY"),
        (["plan", "net:f", "--input", "3by3"], "'3by3' is not a list of sizes such as 1x3x224x224"),
        (["plan", "net:f", "--input", "1x0x4x4"], "'1x0x4x4' is not a list of sizes"),
        (["plan", "net:f", *SMALL, "--dtype", "int8"], "invalid choice: 'int8'"),
        (["plan", "net:f", *SMALL, "--device", "toaster"], "'toaster' is no device"),
        (["plan", "net:f", *SMALL, "--device", "cuda:99"], "has no device 'cuda:99'"),
        (["frobnicate"], "invalid choice: 'frobnicate'"),
        ([], "the following arguments are required: COMMAND"),
    ],
)
def test_bad_use_exits_with_2(arguments, message, capsys):
    with pytest.raises(SystemExit) as exit:
        cli.main(arguments)
    assert exit.value.code == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("model", "input", "message"),
    [
        ("no_such_module:f", "1x3x8x8", "ModuleNotFoundError: No module named 'no_such_module'"),
        ("no_such_file.py:f", "1x3x8x8", "no_such_file.py: there is no such file"),
        ("some_networks.py:missing", "1x3x8x8", "some_networks.py has no 'missing'"),
        ("some_networks:small.missing", "1x3x8x8", "some_networks has no 'small.missing'"),
        ("some_networks:number", "1x3x8x8", "number of some_networks gives a value of type int, not a torch.nn.Module"),
        ("some_networks:NAME", "1x3x8x8", "NAME of some_networks, a value of type str, is and makes no module"),
        ("some_networks:wide", "1x3x8x8", "wide of some_networks has to make a module without arguments: missing "),
        ("some_networks:broken", "1x3x8x8", "KeyError: 'weights.pt'"),
        ("some_networks:asserts", "1x3x8x8", "AssertionError"),
        ("some_networks:small", "1x9999999999x99999x99999", "no input of 1x9999999999x99999x99999 can be made: "),
        ("some_networks:small", "1x2x8x8", "Sequential cannot run the sample, [1, 2, 8, 8] of torch.float32: "),
    ],
)
def test_failures_are_one_line_and_exit_with_1(model, input, message, networks, capsys):
    assert cli.main(["summary", model, "--input", input]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"tritonconv summary: {message}")


@pytest.fixture
def caches(tmp_path, monkeypatch):
    monkeypatch.setenv("TRITONCONV_CACHE_DIR", str(tmp_path / "caches"))
    tuning.forget()
    yield tmp_path / "caches"
    tuning.forget()


def test_tune_measures_once_and_says_what_it_found(networks, caches, capsys):
    command = ["tune", f"{networks}:small", *SMALL, "--channels-last", "--training", "--json"]
    assert cli.main(command) == 0
    outcomes = json.loads(capsys.readouterr().out)
    assert {outcome["status"] for outcome in outcomes} == {"measured"}
    assert {"fprop", "wgrad", "conv2d"} <= {outcome["key"]["op"] for outcome in outcomes}
    assert cli.main(command) == 0
    assert {outcome["status"] for outcome in json.loads(capsys.readouterr().out)} == {"stored"}


@pytest.mark.parametrize("budget", ["0", "-1", "nan"])
def test_a_budget_is_positive(budget, networks, caches, capsys):
    assert cli.main(["tune", f"{networks}:small", *SMALL, "--budget", budget]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("tritonconv tune: budget must be a positive number of seconds")


def test_a_store_that_cannot_be_written_is_one_sentence(networks, tmp_path, monkeypatch, capsys):
    (tmp_path / "file").touch()
    monkeypatch.setenv("TRITONCONV_CACHE_DIR", str(tmp_path / "file"))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # of kernels that cannot be kept
        assert cli.main(["tune", f"{networks}:small", *SMALL]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("tritonconv tune: the tuning store ")


def test_an_interrupted_run_says_so(networks, caches, capsys, monkeypatch):
    def interrupt(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(tuning, "tune_keys", interrupt)
    assert cli.main(["tune", f"{networks}:small", *SMALL]) == 130
    assert "interrupted; what was measured until now is stored" in capsys.readouterr().err


def test_a_killed_run_goes_on_where_it_was(networks, caches):
    command = [sys.executable, "-m", "tritonconv", "tune", f"{networks}:small", *SMALL, "--json"]
    killed = subprocess.Popen(command, stdout=subprocess.DEVNULL, cwd=ROOT)
    while killed.poll() is None and not list(caches.glob("tuned/*.json")):
        time.sleep(0.001)
    killed.send_signal(signal.SIGKILL)
    killed.wait()
    kept = len(list(caches.glob("tuned/*.json")))
    run = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT)
    counts = Counter(outcome["status"] for outcome in json.loads(run.stdout))
    assert counts["stored"] == kept > 0
    assert counts.keys() <= {"stored", "measured"}


def test_compile_writes_a_package_that_load_takes(networks, caches, tmp_path, capsys):
    folder = str(tmp_path / "package")
    assert cli.main(["compile", f"{networks}:small", *SMALL, "--target", "cpu", "--out", folder, "--json"]) == 0
    made = json.loads(capsys.readouterr().out)
    assert cli.main(["load", folder, "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == made
    assert made["kernels"] > 0
    assert cli.main(["load", str(tmp_path)]) == 1
    assert "is not loaded: it holds no manifest.json" in capsys.readouterr().err
    out = str(networks)  # a file
    assert cli.main(["compile", f"{networks}:small", *SMALL, "--target", "cpu", "--out", out]) == 1
    assert capsys.readouterr().err == f"tritonconv compile: {out} cannot hold a package (File exists)\n"


def test_python_m():
    command = [sys.executable, "-m", "tritonconv", "--help"]
    run = subprocess.run(command, capture_output=True, text=True, check=True)
    for command in (*cli.ON_MODEL, *cli.OTHERS):
        assert command.__name__ in run.stdout
