"""Patched models under torch's tools for inference and inspection: each gives what an unpatched twin gives."""

import copy
import threading
import warnings
from concurrent.futures import ThreadPoolExecutor, wait

import pytest
import torch
from networks import NET_SITES, Calls, Net, sample, statuses, trained, twins, vgg_like
from torch import nn
from torch.func import functional_call, grad, jacrev, jvp, stack_module_state, vmap

import tritonconv

assert_close = torch.testing.assert_close

pytestmark = pytest.mark.filterwarnings("ignore:.torch.jit")  # torch.func uses it


def evaluated() -> tuple[nn.Module, nn.Module]:
    """The twins in evaluation mode, with statistics of their own."""
    patched, plain = twins()
    trained(plain)
    patched.load_state_dict(plain.state_dict())
    return patched.eval(), plain.eval()


def test_gradients_per_sample_and_other_transforms():
    def transformed(model):
        parameters, buffers = dict(model.named_parameters()), dict(model.named_buffers())
        other = {name: 1.5 * value for name, value in parameters.items()}

        def loss(parameters, x):
            return functional_call(model, (parameters, buffers), (x[None],)).square().sum()

        x = sample()
        return (
            functional_call(model, (other, buffers), (x,)),
            vmap(grad(loss), in_dims=(None, 0))(parameters, x),
            jacrev(model)(x),
            jvp(model, (x,), (sample(1),)),
        )

    patched, plain = evaluated()
    assert_close(transformed(patched), transformed(plain))


def test_an_ensemble_under_vmap():
    def ensemble(model):
        models = [model, copy.deepcopy(model)]
        nn.init.ones_(models[1].conv.weight)
        parameters, buffers = stack_module_state(models)
        base = copy.deepcopy(model).to("meta")
        return vmap(lambda p, b, x: functional_call(base, (p, b), (x,)), in_dims=(0, 0, None))(
            parameters, buffers, sample()
        )

    patched, plain = evaluated()
    assert_close(ensemble(patched), ensemble(plain))


def test_many_threads_share_a_model():
    patched, plain = evaluated()
    sizes = [sample(seed)[: 1 + seed % 2, :, : 4 + seed % 3] for seed in range(6)]
    with torch.no_grad():
        want = [plain(x) for x in sizes]
    wrong = []

    def infer(first):
        with torch.no_grad():
            for turn in range(30):
                place = (first + turn) % len(sizes)
                if not torch.allclose(patched(sizes[place]), want[place]):
                    wrong.append(place)

    threads = [threading.Thread(target=infer, args=(first,)) for first in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_models_run_and_are_patched_while_another_is_traced():
    """To trace a forward, every module there is gets hooks."""
    patched, plain = evaluated()
    before, other, meanwhile = dict(vars(nn.Module)), copy.deepcopy(plain), []

    def forward(model, x):
        meanwhile.append(pool.submit(lambda: (patched(sample()), plain(sample()))))
        meanwhile[-1].exception()
        if len(meanwhile) == 1:
            meanwhile.append(pool.submit(lambda: (tritonconv.patch(other)(sample()), plain(sample()))))
            wait(meanwhile, timeout=0.1)
        return model.conv(x).relu()

    with ThreadPoolExecutor(2) as pool:
        model = tritonconv.patch(Calls(forward))
    for results in meanwhile:
        assert_close(*results.result())
    assert statuses(model) == {"conv": "fused conv2d+relu"}
    assert statuses(other) == NET_SITES
    assert dict(vars(nn.Module)) == before


def test_inference_mode():
    patched, plain = evaluated()
    with torch.inference_mode():
        for _ in range(2):
            got = patched(sample())
            assert got.is_inference()
            assert_close(got, plain(sample()))
        made_here = tritonconv.patch(Net().double(), sample(), when="always")  # weights without version counters
        assert_close(made_here(sample()), tritonconv.unpatch(made_here)(sample()))
    assert_close(trained(patched.train()), trained(plain.train()))


@pytest.mark.parametrize("convert", [nn.Module.half, nn.Module.bfloat16, nn.Module.float])
def test_a_change_of_dtype_after_patching(convert):
    patched, plain = evaluated()
    exact = plain(sample()).detach()
    patched(sample())
    dtype = next(convert(patched).parameters()).dtype
    for got in (patched(sample(dtype=dtype)), convert(plain)(sample(dtype=dtype))):
        assert got.dtype is dtype
        assert (got.detach() - exact).abs().max() / exact.abs().max() < 16 * torch.finfo(dtype).eps
    assert_close(patched.double()(sample()), plain.double()(sample()))


def test_a_model_made_on_meta_gets_its_weights_by_assignment():
    _, plain = evaluated()
    with torch.device("meta"):
        patched = tritonconv.patch(Net()).eval()
    state = plain.state_dict()
    with torch.no_grad():
        for factor in (1.0, 3.0):
            state = {name: factor * value if value.is_floating_point() else value for name, value in state.items()}
            patched.load_state_dict(state, assign=True)
            plain.load_state_dict(state)
            for _ in range(2):
                assert_close(patched(sample()), plain(sample()))


@pytest.mark.parametrize("when", ["before", "after"])
def test_class_activation_maps(when):
    """Grad-CAM: a forward hook for the map, a backward hook for its gradient."""

    def map_and_gradient(model):
        seen = []
        handles = [
            model.norm.register_forward_hook(lambda module, x, y: seen.append(y)),
            model.norm.register_full_backward_hook(lambda module, dx, dy: seen.append(dy[0])),
        ]
        if patch_now:
            tritonconv.patch(model)
        model(sample())[0, 1].backward()
        for handle in handles:
            handle.remove()
        return seen

    patched, plain = evaluated()
    patch_now = when == "before"
    if patch_now:
        tritonconv.unpatch(patched)
    got = map_and_gradient(patched)
    patch_now = False
    assert_close(got, map_and_gradient(plain))
    assert len(got) == 2


@pytest.mark.parametrize("when", ["before", "after"])
def test_feature_extraction_of_torchvision(when):
    extraction = pytest.importorskip("torchvision.models.feature_extraction")
    patched, plain = evaluated()
    nodes = {"stem.1": "norm", "pool": "pool", "mean": "y"}
    want = extraction.create_feature_extractor(plain, nodes)(sample())
    if when == "before":  # an extractor, then patched
        model = tritonconv.patch(extraction.create_feature_extractor(tritonconv.unpatch(patched), nodes))
        assert statuses(model)["conv"] == NET_SITES["conv"]
    else:
        model = extraction.create_feature_extractor(patched, nodes)
    assert_close(model(sample()), want)


def test_tracing():
    patched, plain = evaluated()
    traced = torch.jit.trace(patched, sample())
    assert_close(traced(sample(1)), plain(sample(1)))


def test_a_profile_shows_our_operators():
    patched, plain = evaluated()
    with torch.no_grad(), torch.profiler.profile() as profile:
        for _ in range(2):  # later ones would be repeated as a whole
            assert_close(patched(sample()), plain(sample()))
    with torch.profiler.profile() as step:
        patched(sample()).sum().backward()
    inference, training = ({event.key: event.count for event in each.key_averages()} for each in (profile, step))
    assert inference["tritonconv::fprop_with_norm"] == 4
    assert inference["tritonconv::fprop"] == 2
    assert training["FpropBackward"] == training["tritonconv::wgrad"] == 3


@pytest.mark.parametrize("build", (Net, vgg_like))
def test_scripting(build):
    plain = build().double().eval()
    patched = tritonconv.patch(copy.deepcopy(plain))
    before = patched.state_dict(), list(map(type, patched.modules()))
    scripted = torch.jit.freeze(torch.jit.script(patched))
    assert_close(scripted(sample()), plain(sample()))
    assert list(map(type, patched.modules())) == before[1]
    torch.jit.script(patched).load_state_dict({name: 2 * value for name, value in before[0].items()})
    plain.load_state_dict(patched.state_dict())
    assert_close(patched(sample()), plain(sample()))


@pytest.mark.filterwarnings("ignore:torch.ao.quantization", "ignore:torch.quantize_per")
def test_what_is_prepared_for_quantization_is_left_alone():
    """Conversion replaces modules of torch's own classes, so these have to stay what they are."""
    quantization = torch.ao.quantization
    model = nn.Sequential(quantization.QuantStub(), nn.Conv2d(2, 2, 3), nn.ReLU(), quantization.DeQuantStub()).eval()
    model.qconfig = quantization.get_default_qconfig("x86")
    prepared = quantization.prepare(model)
    with warnings.catch_warnings(record=True):
        tritonconv.patch(prepared)
    (site,) = tritonconv.report(prepared)
    assert (site.status, site.reason) == ("left", "it is prepared for quantization")
    prepared(sample(dtype=torch.float32))
    converted = quantization.convert(prepared)
    assert "QuantizedConv2d" in str(converted)
    assert converted(sample(dtype=torch.float32)).shape == (2, 2, 4, 4)
