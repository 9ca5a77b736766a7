"""Calls in inference that repeat earlier ones as a whole."""

import copy
import gc
import multiprocessing
import weakref
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from networks import Net, sample
from replays import CALLS, CHANGES, SIZES, Kept, assert_alike, programs, replayed, shaping, twins
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

import tritonconv
from tritonconv import choice, engines, replay

ON_CPUS = choice._ON_CPUS  # which tests do without, otherwise


@pytest.fixture(autouse=True)
def poisoned_memory():
    """Memory as torch gives it: what fills it would stand between the launches."""


def recordings(monkeypatch) -> list:
    """Fills with the tapes that are made."""
    tapes, tape = [], replay.Tape
    monkeypatch.setattr(replay, "Tape", lambda *given: tapes.append(tape(*given)) or tapes[-1])
    return tapes


def test_calls_after_the_first_ones_are_replayed_in_few_pieces():
    patched, plain = twins()
    for model in (patched, plain):
        model.to(memory_format=torch.channels_last)
    assert_alike(patched, plain, sample().to(memory_format=torch.channels_last))
    (program,) = programs(patched)
    assert program.calls == CALLS - replay._FIRST - 1
    assert max(len(segment.jobs) for segment in program.segments) > 1


def test_small_poolings_and_what_gives_another_shape_do_not_part_launches(monkeypatch):
    monkeypatch.setattr(choice, "_ON_CPUS", ON_CPUS)
    plain, x = shaping(), torch.randn(1, 2, 6, 6).to(memory_format=torch.channels_last)
    patched = tritonconv.patch(copy.deepcopy(plain))
    assert_alike(patched, plain, x)
    (program,) = programs(patched)
    (segment,) = program.segments
    assert len(segment.jobs) == 4


def test_what_a_caller_got_stays_as_it_is():
    patched, plain = twins()
    with torch.no_grad():
        got = [(x, patched(x)) for x in map(sample, range(CALLS + 2))]
    assert replayed(patched)
    for x, y in got:
        with torch.no_grad():
            torch.testing.assert_close(y, plain(x))
    with torch.no_grad():
        for y in got[-1][1]:
            y.zero_()  # nor does it reach into a later call
    assert_alike(patched, plain, sample())


def test_what_a_module_or_a_hook_keeps_stays_as_it_is():
    patched, plain = twins(Kept())
    seen = []
    with torch.no_grad():
        for x in map(sample, range(CALLS + 2)):
            patched(x)
            plain(x)
            seen.append((patched.middle.seen, plain.middle.seen))
    assert replayed(patched)
    assert patched.middle.calls == plain.middle.calls
    for got, want in seen:
        torch.testing.assert_close(got, want)
    inputs = []
    patched.more[3].register_forward_pre_hook(lambda module, args: inputs.append(args[0]))
    with torch.no_grad():
        for x in map(sample, range(CALLS)):
            patched(x)
            torch.testing.assert_close(inputs.pop(), plain.more[:3](plain.net.stem(x)))


def test_an_input_is_left_as_it_is_and_may_be_given_twice():
    class Sum(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(2, 2, 3, padding=1)

        def forward(self, x, y):
            return self.conv(x) + y.squeeze_(0), x

    plain = Sum().double().eval()
    patched = tritonconv.patch(copy.deepcopy(plain))
    with torch.no_grad():
        for number in range(2 * CALLS):
            x = sample(number)
            y = x if number % 3 == 0 else sample(number + 1)
            got, same = patched(x, y)
            assert same is x
            torch.testing.assert_close(got, plain(x, y)[0])
            torch.testing.assert_close(x, sample(number))


def test_a_view_that_is_changed_in_place_does_not_last():
    class Squeezed(nn.Sequential):
        def forward(self, x):
            return self[1](self[0](x).unsqueeze_(2).squeeze_(2)).squeeze_(1)

    plain = Squeezed(nn.Conv2d(2, 2, 3, padding=1), nn.Conv2d(2, 1, 1)).double().eval()
    patched = tritonconv.patch(copy.deepcopy(plain))
    for seed in range(3):
        assert_alike(patched, plain, sample(seed))
    assert replayed(patched)


def test_threads_at_once_and_a_call_within_a_call():
    patched, plain = twins()
    assert_alike(patched, plain, sample())

    def call(seed):
        with torch.no_grad():
            return patched(sample(seed))

    with ThreadPoolExecutor(4) as pool:
        results = list(pool.map(call, range(40)))
    for seed, got in enumerate(results):
        with torch.no_grad():
            torch.testing.assert_close(got, plain(sample(seed)))

    class Again(nn.Module):
        def forward(self, x):
            depth.append(len(depth))
            if len(depth) % 2:
                inner.append(whole[0](sample(5)))
            return x

    depth, inner, whole = [], [], []
    outer, plain = twins(Again())
    whole.append(outer)
    with torch.no_grad():
        for _ in range(2 * CALLS):
            got = outer(sample(1))
    whole[:] = [plain]
    with torch.no_grad():
        torch.testing.assert_close(got, plain(sample(1)))
        torch.testing.assert_close(inner[0], plain(sample(5)))


def test_programs_are_few_whatever_the_sizes():
    patched, plain = twins()
    for _ in range(2):
        for size in SIZES:
            assert_alike(patched, plain, torch.randn(size, dtype=torch.float64))
    assert 1 <= len(programs(patched)) <= replay._MOST


def test_sizes_that_take_turns_are_not_recorded_at_every_turn(monkeypatch):
    patched, plain = twins()
    tapes = recordings(monkeypatch)
    for _ in range(60):
        for size in SIZES:
            assert_alike(patched, plain, torch.randn(size, dtype=torch.float64), calls=1)
    assert 1 <= len(tapes) <= 30


def test_weights_that_change_at_every_call_are_not_recorded_at_every_call(monkeypatch):
    patched, plain = twins()
    tapes = recordings(monkeypatch)
    for _ in range(40):
        assert_alike(patched, plain, sample(), calls=3)
        for model in (patched, plain):
            CHANGES["a weight in place"](model)
    assert 1 <= len(tapes) <= 8


def test_gradients_autocast_an_engine_and_threads_are_heeded():
    patched, plain = twins()
    x = sample()
    assert_alike(patched, plain, x)
    before = replayed(patched)
    sum(y.sum() for y in patched(x)).backward()
    sum(y.sum() for y in plain(x)).backward()
    for got, want in zip(patched.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(got.grad, want.grad)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        patched(x)
    with engines.use("interpreter"):
        assert_alike(patched, plain, x)
    with torch.no_grad(), FlopCounterMode(display=False):
        patched(x)
    assert replayed(patched) == before
    threads = torch.get_num_threads()
    torch.set_num_threads(threads + 1)
    try:
        assert_alike(patched, plain, x)
    finally:
        torch.set_num_threads(threads)
    assert len(programs(patched)) == 2


def test_functional_call_takes_the_given_weights():
    patched, plain = twins()
    x = sample()
    assert_alike(patched, plain, x)
    weights = {name: p.detach() * 2 for name, p in plain.named_parameters()}
    with torch.no_grad():
        for _ in range(CALLS):
            got = torch.func.functional_call(patched, weights, (x,))
            torch.testing.assert_close(got, torch.func.functional_call(plain, weights, (x,)))
    assert_alike(patched, plain, x)


def test_a_copy_runs_on_its_own_weights():
    patched, plain = twins()
    assert_alike(patched, plain, sample())
    twin, plain_twin = copy.deepcopy(patched), copy.deepcopy(plain)
    for model in (twin, plain_twin):
        CHANGES["a weight in place"](model)
    assert_alike(twin, plain_twin, sample())
    assert_alike(patched, plain, sample())
    assert replayed(twin) and replayed(patched)


def test_what_is_kept_goes_with_the_model():
    patched, plain = twins()
    gc.collect()  # what tracing left behind
    gc.disable()  # from here on by counts of references alone
    try:
        assert_alike(patched, plain, sample())
        (program,) = programs(patched)
        gone, weight = weakref.ref(program), weakref.ref(patched.up.weight)
        del patched, program
        assert gone() is None and weight() is None
    finally:
        gc.enable()


def _in_child(model, x, queue) -> None:
    with torch.no_grad():
        for _ in range(CALLS):
            result = model(x)
    queue.put(result.numpy())


def test_a_forked_child():
    plain = nn.Sequential(nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 2, 3)).double().eval()
    patched = tritonconv.patch(copy.deepcopy(plain))
    assert_alike(patched, plain, sample())
    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    child = context.Process(target=_in_child, args=(patched, sample(1), queue))
    child.start()
    got = torch.from_numpy(queue.get(timeout=60))
    child.join()
    with torch.no_grad():
        torch.testing.assert_close(got, plain(sample(1)))


def test_untraceable_models_are_replayed_in_parts():
    class Branches(nn.Module):
        def __init__(self):
            super().__init__()
            self.net, self.calls = Net(), 0

        def forward(self, x):
            self.calls += 1
            return self.net(x) if x.sum() > 0 else self.net(-x)

    plain = Branches().double().eval()
    patched = tritonconv.patch(copy.deepcopy(plain))
    assert_alike(patched, plain, sample())
    assert patched.calls == CALLS and replayed(patched.net)


def test_a_recording_counts_as_one_call():
    """What a forward does beside its result, dropout's random numbers among it, is done once."""
    patched, plain = twins(Kept())
    for model in (patched, plain):
        model.more[2].train()
    with torch.no_grad():
        for seed in range(CALLS):
            results = []
            for model in (patched, plain):
                torch.manual_seed(seed)
                results.append((*model(sample()), torch.rand(1)))
            torch.testing.assert_close(*results)
    assert patched.middle.calls == CALLS and replayed(patched)
