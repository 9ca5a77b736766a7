"""Bad use of `patch` and its kin: one sentence, that names the value and what is valid, or torch's own behaviour."""

import copy

import pytest
import torch
import torch.distributed as dist
from networks import SIZE, Net, assert_as_before, statuses
from torch import nn

import tritonconv
from tritonconv.patching import swap

CALLS = {
    "patch": tritonconv.patch,
    "plan": lambda model: tritonconv.plan(model, torch.randn(SIZE)),
    "summary": lambda model: tritonconv.summary(model, torch.randn(SIZE)),
    "tune": lambda model: tritonconv.tune(model, torch.randn(SIZE)),
    "unpatch": tritonconv.unpatch,
    "report": tritonconv.report,
}


@pytest.mark.parametrize("model", (None, lambda x: x, "resnet18", [nn.Conv2d(2, 2, 1)]), ids=lambda m: type(m).__name__)
@pytest.mark.parametrize("call", CALLS)
def test_what_is_no_module_is_refused(call, model):
    with pytest.raises(TypeError, match=f"^{call} expects a torch.nn.Module, got {type(model).__name__}$"):
        CALLS[call](model)
    with pytest.raises(TypeError, match=f"^{call} expects a torch.nn.Module, got the class Net: make one of it first$"):
        CALLS[call](Net)


@pytest.fixture
def one_process(tmp_path):
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.mark.parametrize("call", ("patch", "plan", "summary"))
def test_a_distributed_model_is_refused(call, one_process):
    model = nn.parallel.DistributedDataParallel(Net())
    message = f"{call} expects the model itself, got it wrapped by DistributedDataParallel: {call} first, then wrap"
    with pytest.raises(TypeError, match=message):
        CALLS[call](model)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"include": 3}, TypeError, "include must be glob patterns such as 'features.*', got 3"),
        ({"exclude": ["stem.*", None]}, TypeError, "exclude must be glob patterns such as 'features.*', got None"),
        ({"filter_fn": "conv"}, TypeError, "filter_fn must be a function of a name and a module, got 'conv'"),
        ({"sample": (3, 2)}, ValueError, "the sample, of type tuple, holds no tensor: it must be the model's input, a"),
        ({"sample": {"y": torch.ones(SIZE)}}, ValueError, "Net cannot run the sample, .* keyword argument 'y'"),
        ({"sample": torch.ones(SIZE).long()}, ValueError, r"cannot run the sample, \[2, 2, 6, 6\] of torch.int64"),
        ({"sample": torch.ones(SIZE).half()}, ValueError, r"cannot run the sample, \[2, 2, 6, 6\] of torch.float16"),
    ],
)  # fmt: skip
def test_bad_options_get_one_sentence_and_leave_the_model_alone(options, error, message):
    model = tritonconv.patch(Net(), exclude="head")
    before = statuses(model)
    with pytest.raises(error, match=message) as raised:
        tritonconv.patch(model, **options)
    assert "\n" not in str(raised.value)
    if error is TypeError:  # seen before anything is done
        assert statuses(model) == before


def test_a_sample_without_values_is_refused_where_values_are_needed():
    model, sample = Net().to("meta"), torch.randn(SIZE, device="meta")
    assert len(tritonconv.plan(model, sample)) == 4
    with pytest.raises(ValueError, match="patch: no kernel runs on meta, to be timed or compared there: leave the"):
        tritonconv.patch(model, sample)
    assert swap.plan_of(model) is None


@pytest.mark.parametrize("option", ("include", "exclude"))
def test_a_pattern_that_matches_nothing_is_warned_about(option):
    given = {option: ["stem.*", "haed"]} if option == "exclude" else {option: ["*", "haed"]}
    with pytest.warns(UserWarning, match=f"patch: {option}='haed' matches no site of Net") as caught:
        model = tritonconv.patch(Net(), **given)
    assert [warning.filename for warning in caught] == [__file__]
    tritonconv.patch(model, exclude=["norm", "head"])  # a part of a block is no mistake


def test_a_lazy_model_is_patched_after_its_first_call():
    model = nn.Sequential(nn.LazyConv2d(3, 1), nn.ReLU())
    with pytest.raises(ValueError, match="no weights before its first call: run the model once, then patch it"):
        tritonconv.patch(model, strict=True)
    model(torch.randn(SIZE))
    assert statuses(tritonconv.patch(model, strict=True)) == {"0": "fused conv2d+relu"}


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_scripted_part_is_run_and_not_looked_into():
    model = nn.Sequential(torch.jit.script(nn.Sequential(nn.Conv2d(2, 2, 1), nn.ReLU())), nn.Conv2d(2, 2, 1))
    assert [step.site.fqn for step in tritonconv.plan(model, torch.randn(SIZE))] == ["1"]
    assert [layer.kind for layer in tritonconv.summary(model, torch.randn(SIZE))] == ["convolution", "relu", "Conv2d"]


@pytest.mark.filterwarnings("ignore:.*quant.*:UserWarning", "ignore::DeprecationWarning")
def test_a_quantized_convolution_is_left_and_says_so():
    from torch.ao import quantization

    model = nn.Sequential(quantization.QuantStub(), nn.Conv2d(2, 2, 1), quantization.DeQuantStub()).eval()
    model.qconfig = quantization.get_default_qconfig(torch.backends.quantized.engine)
    prepared = quantization.prepare(model)
    prepared(torch.randn(SIZE))
    reasons = {prepared: "it is prepared for quantization", quantization.convert(prepared): "it is quantized"}
    for made, reason in reasons.items():
        with pytest.warns(UserWarning, match="none of the 1 sites"):
            (site,) = tritonconv.report(tritonconv.patch(copy.deepcopy(made)))
        assert (site.fqn, site.status) == ("1", "left")
        assert site.reason.startswith(reason)


def non_leaf(model):
    weight = model.head.weight
    del model.head._parameters["weight"]
    model.head.weight = weight * 2


def frozen(model):
    model.stem.requires_grad_(False)


@pytest.mark.parametrize("change", (non_leaf, frozen))
def test_unusual_weights_train_as_before(change):
    model = Net().double()
    change(model)
    plain, x = (copy.deepcopy(model) if change is frozen else model), torch.randn(SIZE, dtype=torch.float64)

    def gradients(model):
        parameters = [p for p in model.parameters() if p.requires_grad]
        return torch.autograd.grad(model(x).square().sum(), parameters, retain_graph=True)

    want = gradients(plain)
    torch.testing.assert_close(gradients(tritonconv.patch(model)), want)


@pytest.mark.parametrize("mode", (torch.no_grad, torch.inference_mode))
def test_patching_without_gradients_is_patching(mode):
    with mode():
        model = tritonconv.patch(Net(), torch.randn(SIZE), when="always")
        assert statuses(model)["conv"] == "fused conv2d+batch_norm+add+relu"
    if mode is torch.no_grad:  # tensors made in the other cannot be trained, by torch's own rule
        assert_as_before(model)
