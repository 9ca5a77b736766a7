"""The search by fake candidates on a fake clock, and the session around it."""

import io
import json

import pytest
from rich.console import Console

import autotune
from autotune import Problem
from autotune.search import HOPELESS, WAVE, search


class Fake:
    """Candidates {"n": 0}, {"n": 1}, … that take `seconds[n]`; the clock moves only when one is called."""

    def __init__(self, seconds, broken=(), wrong=(), noise=lambda n, call: 1.0):
        self.seconds, self.broken, self.wrong, self.noise = seconds, broken, wrong, noise
        self.now, self.calls, self.waves = 0.0, [0] * len(seconds), []

    def run(self, config):
        n = config["n"]
        if n in self.broken:
            raise ValueError(f"no {n}\nand a long story")

        def call():
            self.calls[n] += 1
            self.now += self.seconds[n] * self.noise(n, self.calls[n])
            return n

        return call

    def clock(self, call):
        start = self.now
        call()
        return self.now - start

    def problem(self, **key):
        return Problem(
            key={"op": "fake", **key},
            candidates=[{"n": n} for n in range(len(self.seconds))],
            costs=[float(n) for n in range(len(self.seconds))],
            run=self.run,
            check=lambda result: "it is wrong" if result in self.wrong else None,
            prepare=lambda configs: self.waves.append([config["n"] for config in configs]),
            clock=self.clock,
        )

    def search(self, **options):
        *_, (best, trials) = search(self.problem(), now=lambda: self.now, **options)
        return best, trials


@pytest.fixture(autouse=True)
def directory(tmp_path, monkeypatch):
    monkeypatch.setenv("TRITONCONV_CACHE_DIR", str(tmp_path))
    return tmp_path / "tuned"


@pytest.mark.parametrize("fastest", range(WAVE))
def test_the_fastest_wins_wherever_it_was_predicted(fastest):
    fake = Fake([0.01 if n == fastest else 0.011 + n / 1000 for n in range(WAVE)])
    best, trials = fake.search()
    assert best.config == {"n": fastest}
    assert best.seconds == pytest.approx(0.01)
    assert len(trials) == WAVE
    assert all(trial.times for trial in trials)


def test_slow_spells_do_not_decide():
    """Every third call of the fastest, and of no other, takes five times as long."""
    fake = Fake([0.012, 0.010, 0.011], noise=lambda n, call: 5 if n == 1 and call % 3 else 1)
    best, _ = fake.search()
    assert best.config == {"n": 1}


def test_the_slow_drop_out_early():
    fake = Fake([0.010, 0.0101, 0.0102, 0.0103, 0.010 * HOPELESS * 1.1, 0.05, 0.06, 0.07])
    fake.search()
    assert max(fake.calls[4:]) < min(fake.calls[:4])
    assert fake.calls[3] < fake.calls[1] <= fake.calls[0]


def test_a_wave_that_brings_nothing_faster_is_the_last():
    falling = Fake([0.1 - n / 1000 for n in range(3 * WAVE)])
    best, _ = falling.search()
    assert best.config == {"n": 3 * WAVE - 1}
    assert falling.waves == [list(range(n, n + WAVE)) for n in (0, WAVE, 2 * WAVE)]
    rising = Fake([0.1 + n / 1000 for n in range(3 * WAVE)])
    best, trials = rising.search()
    assert best.config == {"n": 0}
    assert len(rising.waves) == 2
    assert len(trials) == 2 * WAVE
    rising.search(exhaustive=True)
    assert len(rising.waves) == 2 + 3


def test_what_fails_or_computes_wrongly_is_not_timed():
    fake = Fake([0.01, 0.02, 0.03], broken=(0,), wrong=(1,))
    best, trials = fake.search()
    assert best.config == {"n": 2}
    assert [trial.error for trial in trials] == ["ValueError: no 0", "it is wrong", None]
    assert fake.calls[:2] == [0, 1]


def test_a_search_without_any_that_works_says_why():
    with pytest.raises(RuntimeError, match="none of the 2 configurations of .* works: ValueError: no 0; it is wrong"):
        Fake([1.0, 1.0], broken=(0,), wrong=(1,)).search()
    later = Fake([1.0] * (WAVE + 1), broken=range(WAVE))
    assert later.search()[0].config == {"n": WAVE}


def test_after_the_deadline_no_round_begins_but_the_first():
    fake = Fake([1.0, 2.0] * WAVE)
    best, trials = fake.search(deadline=0.0)
    assert best.config == {"n": 0}
    assert len(trials) == WAVE
    assert max(fake.calls) <= 1 + 2


def run(fakes, **options):
    """Tunes a key per fake; returns the outcomes and what was printed."""
    keys = [{"op": "fake", "name": name} for name in fakes]
    console = Console(file=io.StringIO(), width=120)
    made = {name: fake.problem(name=name) for name, fake in fakes.items()}
    tuning = autotune.tune([keys], lambda key: made[key["name"]], {"device": "test"}, console=console, **options)
    return tuning, {outcome.key["name"]: outcome for outcome in tuning.outcomes}


def test_a_result_is_stored_with_its_trials_and_not_searched_again(directory):
    fakes = {"a": Fake([0.02, 0.01]), "b": Fake([0.01, 0.02], broken=(1,))}
    tuning, outcomes = run(fakes)
    assert tuning.count("measured") == 2
    assert outcomes["a"].config == {"n": 1}
    assert (outcomes["a"].untuned, outcomes["a"].seconds) == (pytest.approx(0.02), pytest.approx(0.01))
    assert autotune.lookup({"op": "fake", "name": "a"}) == {"n": 1}
    entries = {e["key"]["name"]: e["provenance"] for e in map(json.loads, (p.read_text() for p in directory.iterdir()))}
    assert entries["a"]["how"] == "measured"
    assert entries["a"]["device"] == "test"
    assert [trial["config"]["n"] for trial in entries["a"]["trials"]] == [0, 1]
    assert entries["b"]["trials"][1]["error"] == "ValueError: no 1"

    calls = fakes["a"].calls[:]
    tuning, outcomes = run(fakes)
    assert tuning.count("stored") == 2
    assert outcomes["a"].config == {"n": 1}
    assert fakes["a"].calls == calls
    assert "2 stored" in str(tuning)


def test_a_killed_run_keeps_what_it_finished():
    class Killed(Fake):
        def run(self, config):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run({"a": Fake([0.01, 0.02]), "b": Killed([0.01])})
    _, outcomes = run({"a": Fake([0.01, 0.02]), "b": Fake([0.01])})
    assert outcomes["a"].status == "stored"
    assert outcomes["b"].status == "measured"


def test_a_problem_that_nothing_solves_fails_alone():
    tuning, outcomes = run({"a": Fake([0.01], broken=(0,)), "b": Fake([0.01])})
    assert outcomes["a"].status == "failed"
    assert "no 0" in outcomes["a"].error
    assert "no 0" in str(tuning)
    assert outcomes["b"].status == "measured"


def test_what_the_budget_does_not_reach_is_left():
    run({"a": Fake([0.01])})
    fakes = {"a": Fake([0.01]), "b": Fake([0.01])}
    tuning, outcomes = run(fakes, deadline=autotune.deadline_of(1e-9))
    assert outcomes["a"].status == "stored"
    assert outcomes["b"].status == "left"
    assert fakes["b"].calls == [0]
    assert autotune.lookup({"op": "fake", "name": "b"}) is None


@pytest.mark.parametrize("budget", (0, -1.5, float("nan")))
def test_a_budget_is_positive(budget):
    with pytest.raises(ValueError, match=f"budget must be a positive number of seconds, or None .*; got {budget}"):
        autotune.deadline_of(budget)
    assert autotune.deadline_of(None) == float("inf")


def test_a_store_that_cannot_be_written_is_said_at_the_start(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("TRITONCONV_CACHE_DIR", str(tmp_path / "file"))
    fake = Fake([0.01])
    with pytest.raises(OSError, match="cannot be written .*: set TRITONCONV_CACHE_DIR to a folder that can"):
        run({"a": fake})
    assert fake.calls == [0]


def test_progress_names_the_problem_and_the_best_so_far():
    file = io.StringIO()
    console = Console(file=file, width=120, force_terminal=True)
    autotune.tune([[{"op": "fake"}]], lambda key: Fake([0.01, 0.02]).problem(), {}, console=console)
    assert "fake: 10.000 ms" in file.getvalue()
    assert "1/1" in file.getvalue()
