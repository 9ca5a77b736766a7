"""Finds the fastest of some configurations: predicted order, then measured successive halving.

Candidates are taken in waves, the predicted best first, and a wave races the best of those before. In a race all take
turns, so that a slow spell of the machine meets all of them; after each round, which has twice the turns of the one
before, the faster half goes on. The search ends when a wave brings nothing faster. What counts of a candidate is its
least time: whatever else a machine does can only add to it. Who is no faster than the predicted best, but for noise, is
not chosen in its stead.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

WAVE = 8
ROUNDS = (2, 4, 8, 16)  # turns of each candidate
TURN_SECONDS = 1e-3  # that a turn takes at least: a fast candidate is called several times
ROUND_SECONDS = 1.0  # after which a round ends early, though no candidate goes without a turn
NOISE = 1.03  # the least factor by which a candidate must be faster than the predicted one to be chosen
HOPELESS = 1.5  # who is slower than the leader by this factor does not stay, not even in the faster half


@dataclass(frozen=True)
class Problem:
    """What a search is about.

    candidates: configurations, the predicted best first; anything JSON can hold.
    costs: what was predicted of each, in any unit; None where nothing was.
    run: `run(config)` returns a function of nothing, whose calls are timed.
    check: `check(result)` of such a call says what is wrong with the result, or None.
    prepare: `prepare(configs)` may compile a wave side by side, before `run`.
    clock: seconds that a call takes.
    """

    key: Mapping
    candidates: Sequence[Mapping]
    costs: Sequence[float | None]
    run: Callable[[Mapping], Callable[[], object]]
    check: Callable[[object], str | None]
    prepare: Callable[[Sequence[Mapping]], None]
    clock: Callable[[Callable[[], object]], float]


@dataclass(eq=False)
class Trial:
    """A candidate, the times it took so far, and why it is out of the race if it failed."""

    config: Mapping
    cost: float | None
    times: list[float] = field(default_factory=list)
    error: str | None = None

    @property
    def seconds(self) -> float:
        return min(self.times)

    def to_json(self) -> dict:
        seconds = self.seconds if self.times else None
        return {"config": self.config, "cost": self.cost, "seconds": seconds, "error": self.error}


def search(
    problem: Problem,
    exhaustive: bool = False,
    deadline: float = float("inf"),
    now: Callable[[], float] = time.monotonic,
) -> Iterator[tuple[Trial, list[Trial]]]:
    """Yields the best trial so far and all trials, after each round; the last that it yields is the result.

    exhaustive: take all waves. deadline: the value of `now()` after which no round begins; one always does.
    Raises `RuntimeError` if no candidate works.
    """
    trials: list[Trial] = []
    best: Trial | None = None
    for start in range(0, len(problem.candidates), WAVE):
        wave = [Trial(*pair) for pair in zip(problem.candidates, problem.costs, strict=True)][start : start + WAVE]
        trials += wave
        problem.prepare([trial.config for trial in wave])
        runs = {trial: run for trial in wave if (run := _checked(problem, trial)) is not None}
        if best is not None:
            runs[best] = problem.run(best.config)
        for leader in _race(problem, runs, deadline, now):
            yield _preferred(trials[0], leader), trials
        if runs:
            beaten, best = best, leader
            if (best is beaten and not exhaustive) or now() > deadline:
                return
    if best is None:
        errors = "; ".join(dict.fromkeys(str(trial.error) for trial in trials))
        raise RuntimeError(f"none of the {len(trials)} configurations of {dict(problem.key)} works: {errors}")


def _preferred(predicted: Trial, leader: Trial) -> Trial:
    """The predicted choice, unless another one is faster by more than noise."""
    return predicted if predicted.times and predicted.seconds <= NOISE * leader.seconds else leader


def _checked(problem: Problem, trial: Trial) -> Callable[[], object] | None:
    """What to time, once it has run and its result was right; else None, and the trial says why."""
    try:
        run = problem.run(trial.config)
        trial.error = problem.check(run())
    except Exception as error:  # a configuration may fail in any way, as compilers do
        trial.error = f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"
    return run if trial.error is None else None


def _race(
    problem: Problem, runs: Mapping[Trial, Callable[[], object]], deadline: float, now: Callable[[], float]
) -> Iterator[Trial]:
    """Yields the leader after each round."""
    alive = list(runs)
    for turns in ROUNDS if alive else ():
        start = now()
        for _ in range(turns):
            for trial in alive:
                trial.times.append(_turn(problem.clock, runs[trial]))
            if now() - start > ROUND_SECONDS:
                break
        alive.sort(key=lambda trial: trial.seconds)
        yield alive[0]
        alive = [t for t in alive[: -(-len(alive) // 2)] if t.seconds <= HOPELESS * alive[0].seconds]
        if len(alive) == 1 or now() > deadline:
            return


def _turn(clock: Callable[[Callable[[], object]], float], run: Callable[[], object]) -> float:
    """The least time of calls that take `TURN_SECONDS` together."""
    times = [clock(run)]
    while sum(times) < TURN_SECONDS:
        times.append(clock(run))
    return min(times)
