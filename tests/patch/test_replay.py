"""Calls in inference that repeat earlier ones as a whole: whatever has changed since, they give what torch gives."""

import copy
import gc
import multiprocessing
import weakref
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from networks import SIZE, Net, sample
from torch import nn
from torch.nn.utils import prune
from torch.utils.flop_counter import FlopCounterMode

import tritonconv
from tritonconv import choice, engines, replay
from tritonconv.blocks.modules import LEAVES
from tritonconv.replay import guard

ON_CPUS = choice._ON_CPUS  # which tests do without, otherwise
CALLS = replay._FIRST + 3  # alike, of which the last ones are replayed


@pytest.fixture(autouse=True)
def poisoned_memory():
    """Memory as torch gives it: what fills it would stand between the launches."""


class Kept(nn.Module):
    """Cannot be traced, and keeps what it is given."""

    def __init__(self):
        super().__init__()
        self.seen, self.calls = None, 0

    def forward(self, x):
        self.seen = x
        self.calls += 1
        return x


class Mixed(nn.Module):
    """All that may stand in a forward: blocks, torch's functions between them, and a module that nobody looks into."""

    def __init__(self, middle: nn.Module | None = None):
        super().__init__()
        self.net, self.middle = Net(), middle or nn.Identity()
        self.more = nn.Sequential(nn.Conv2d(4, 4, 1), nn.ReLU(inplace=True), nn.Dropout(), nn.BatchNorm2d(4))
        self.up = nn.ConvTranspose2d(8, 2, 2, stride=2)

    def forward(self, x):
        y = self.middle(self.net.stem(x))
        z = torch.cat((self.more(y) + y, 2 + y), 1)
        z = self.up(z).relu_()
        return self.net(x), z, z.flatten(1), torch.cat([y, y], 1), y + y


def twins(middle: nn.Module | None = None, dtype: torch.dtype = torch.float64) -> tuple[nn.Module, nn.Module]:
    torch.manual_seed(0)
    plain = Mixed(middle).to(dtype).eval()
    with torch.no_grad():
        for buffer in plain.buffers():
            if buffer.dim():
                buffer.uniform_(0.5, 2)
    return tritonconv.patch(copy.deepcopy(plain)), plain


def programs(model: nn.Module) -> list:
    return [program for _, program in model.__dict__["_tritonconv"].replays._programs.values()]


def replayed(model: nn.Module) -> int:
    return sum(program.calls for program in programs(model))


def recordings(monkeypatch) -> list:
    """Fills with the tapes that are made."""
    tapes, tape = [], replay.Tape
    monkeypatch.setattr(replay, "Tape", lambda *given: tapes.append(tape(*given)) or tapes[-1])
    return tapes


def assert_alike(patched, plain, *inputs, calls: int = CALLS) -> None:
    with torch.no_grad():
        want = plain(*inputs)
        for _ in range(calls):
            got = patched(*inputs)
            torch.testing.assert_close(got, want)
            assert [y.stride() for y in got] == [y.stride() for y in want]


def test_calls_after_the_first_ones_are_replayed_in_few_pieces():
    patched, plain = twins()
    for model in (patched, plain):
        model.to(memory_format=torch.channels_last)
    assert_alike(patched, plain, sample().to(memory_format=torch.channels_last))
    (program,) = programs(patched)
    assert program.calls == CALLS - replay._FIRST - 1
    assert max(len(segment.jobs) for segment in program.segments) > 1


def shaping() -> nn.Sequential:
    layers = nn.Conv2d(2, 4, 3), nn.AvgPool2d(2), nn.Dropout(), nn.Conv2d(4, 4, 2), nn.Flatten(), nn.Linear(4, 3)
    return nn.Sequential(*layers).eval().to(memory_format=torch.channels_last)


def test_small_poolings_and_what_gives_another_shape_do_not_part_launches(monkeypatch):
    monkeypatch.setattr(choice, "_ON_CPUS", ON_CPUS)
    plain, x = shaping(), torch.randn(1, 2, 6, 6).to(memory_format=torch.channels_last)
    patched = tritonconv.patch(copy.deepcopy(plain))
    assert_alike(patched, plain, x)
    (program,) = programs(patched)
    (segment,) = program.segments
    assert len(segment.jobs) == 4


@pytest.mark.parametrize("change", [
    lambda m: setattr(m[4], "start_dim", 2),
    lambda m: setattr(m[4], "forward", lambda x: x.flatten(1) + 1),
    lambda m: (m[2].train(), setattr(m[2], "p", 1.0)),
    lambda m: m[2].register_forward_hook(lambda module, args, y: y + 1),
])  # fmt: skip
def test_a_change_of_what_gives_another_shape(change):
    plain = nn.Sequential(*shaping()[:5])
    patched, x = tritonconv.patch(copy.deepcopy(plain)), torch.randn(1, 2, 6, 6).to(memory_format=torch.channels_last)
    assert_alike(patched, plain, x)
    assert replayed(patched)
    for model in (patched, plain):
        change(model)
    assert_alike(patched, plain, x)


# What can be done to a model between two calls, each a function of it.


def in_place(path: str, value: float):
    def change(m):
        with torch.no_grad():
            m.get_parameter(path).mul_(value)

    return change


def unhooked(hook):
    def change(m):
        hook(m).remove()

    return change


CHANGES = {
    "nothing": lambda m: None,
    "a weight in place": in_place("net.stem.0.weight", 2),
    "a weight behind the counter": lambda m: m.net.conv.weight.data.mul_(2),
    "a weight's memory": lambda m: setattr(m.net.conv.weight, "data", m.net.conv.weight.data * 2),
    "another weight": lambda m: setattr(m.up, "weight", nn.Parameter(m.up.weight.detach() * 2)),
    "a bias in place": in_place("more.0.bias", -2),
    "another bias": lambda m: setattr(m.more[0], "bias", nn.Parameter(m.more[0].bias.detach() * 2)),
    "no bias": lambda m: setattr(m.up, "bias", None),
    "running statistics in place": lambda m: m.net.stem[1].running_mean.add_(1),
    "other running statistics": lambda m: setattr(m.net.norm, "running_var", m.net.norm.running_var * 2),
    "a loaded state": lambda m: m.load_state_dict({k: v + 1 for k, v in m.state_dict().items()}),
    "an assigned state": lambda m: m.load_state_dict({k: v + 1 for k, v in m.state_dict().items()}, assign=True),
    "eps": lambda m: setattr(m.net.norm, "eps", 0.5),
    "statistics of the batch": lambda m: m.net.norm.train(),
    "training": lambda m: (m.train(), setattr(m.more[2], "p", 0.0)),
    "dilation": lambda m: (setattr(m.net.conv, "dilation", (2, 2)), setattr(m.net.conv, "padding", (2, 2))),
    "another child": lambda m: m.more.__setitem__(1, nn.Sigmoid()),
    "no child": lambda m: m.more.__delitem__(3) or m.more.append(nn.Identity()),
    "a grandchild": lambda m: setattr(
        m.net, "stem", nn.Conv2d(2, 4, 3, padding=1).double().requires_grad_(False).eval()
    ),
    "a forward of its own": lambda m: setattr(m.net.stem[2], "forward", lambda x: x * 3),
    "a child's forward": lambda m: setattr(m.net.stem, "forward", lambda x: x[:, :1].expand(-1, 4, -1, -1) * 3),
    "a hook": lambda m: m.net.norm.register_forward_hook(lambda module, args, y: y + 1),
    "a hook before a child": lambda m: m.net.stem.register_forward_pre_hook(lambda module, args: (args[0] * 2,)),
    "a hook for a while": unhooked(lambda m: m.net.norm.register_forward_hook(lambda module, args, y: y + 1)),
    "channels_last": lambda m: m.to(memory_format=torch.channels_last),
    "weight norm": lambda m: nn.utils.parametrizations.weight_norm(m.net.conv),
    "pruning": lambda m: prune.l1_unstructured(m.more[0], "weight", 3),
    "a child unpatched": lambda m: tritonconv.unpatch(m.net.stem),
    "a replaced dictionary": lambda m: m.net.stem[0]._parameters.update(
        weight=nn.Parameter(m.net.stem[0].weight.detach() * 3)
    ),
}


def fixed(m: nn.Module, change: str) -> None:
    """Makes a change the same for the patched and the plain model, though it draws random numbers."""
    torch.manual_seed(3)
    CHANGES[change](m)


@pytest.mark.parametrize("change", CHANGES)
def test_a_change_of_the_model(change):
    patched, plain = twins()
    assert_alike(patched, plain, sample())
    before = replayed(patched)
    assert before
    for model in (patched, plain):
        fixed(model, change)
    if change in ("training", "statistics of the batch"):  # every call counts
        with torch.no_grad():
            for _ in range(2 * CALLS):
                torch.testing.assert_close(patched(sample()), plain(sample()))
        torch.testing.assert_close(patched.state_dict(), plain.state_dict())
    else:
        assert_alike(patched, plain, sample(), calls=2 * CALLS)


@pytest.mark.parametrize("change", [change for change in CHANGES if "weight" in change])
def test_a_change_of_one_of_many_weights(change, monkeypatch):
    """They are looked at together."""
    monkeypatch.setattr(guard, "_MANY", 0)
    test_a_change_of_the_model(change)


SIZES = [SIZE, (1, 2, 6, 6), (2, 2, 8, 6), (2, 2, 6, 8), (3, 2, 8, 8), (1, 2, 4, 4)]
MODES = {
    "no_grad": torch.no_grad,
    "inference_mode": torch.inference_mode,
    "gradients": torch.enable_grad,
    "autocast": lambda: torch.autocast("cpu", torch.bfloat16),
}
AT_ANY_TIME = [change for change in CHANGES if change.split()[-1] in ("place", "counter", "memory", "state", "while")]
ACTIONS = st.one_of(
    st.tuples(st.just("change"), st.sampled_from([*AT_ANY_TIME, "another weight", "eps", "dilation", "channels_last"])),
    *[st.tuples(st.just("call"), st.sampled_from(SIZES[:3]), st.sampled_from(list(MODES)))] * 4,
)


@settings(max_examples=12, deadline=None)
@given(st.lists(ACTIONS, min_size=6, max_size=16))
def test_any_sequence_of_calls_and_changes(actions):
    patched, plain = twins()
    assert_alike(patched, plain, sample())
    for kind, *what in actions:
        if kind == "change":
            (change,) = what
            for model in (patched, plain):
                fixed(model, change)
            continue
        size, mode = what
        x = torch.randn(size, dtype=torch.float64)
        for _ in range(3):
            with MODES[mode]():
                got, want = patched(x), plain(x)
                torch.testing.assert_close(got, want)
                assert [y.is_inference() for y in got] == [y.is_inference() for y in want]


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


def example(kind: type) -> tuple[nn.Module, torch.Tensor]:
    convolution, rows = (3, 3, 1), (nn.Conv1d, nn.BatchNorm1d)
    given = {nn.Conv1d: convolution, nn.Conv2d: convolution, nn.BatchNorm1d: (3,), nn.BatchNorm2d: (3,)}
    module = kind(*given.get(kind, (5, 2) if kind is nn.Linear else ()))
    return module, torch.randn((2, 3, 5) if kind in rows else (2, 3, 5, 5))


@pytest.mark.parametrize("kind", guard.READ)
def test_a_guard_looks_at_all_settings_that_a_forward_reads(kind):
    module, x = example(kind)
    read = set()

    class Spied(kind):
        def __getattribute__(self, name):
            read.add(name)
            return super().__getattribute__(name)

    settings = {name for name in vars(module) if not name.startswith("_")}
    module.__class__ = Spied
    for mode in (True, False):
        module.train(mode)
        read.clear()
        module(x)
        if kind in LEAVES:
            LEAVES[kind](module, x)
        assert read & settings <= {*guard.READ[kind]}
        assert {*guard.READ[kind]} <= settings
