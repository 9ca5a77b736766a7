"""Code for processors that this machine need not be: the inner loops of matrix products, as assembly."""

import re
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch
import triton
import triton.language as tl
from triton.compiler import ASTSource

from benchmarks import programs
from examples.add import add
from tritonconv import launch
from tritonconv.configs import TileConfig
from tritonconv.cpu import build, engine, jit, runtime, show, target
from tritonconv.cpu.compiler import CPUBackend, cpu_target
from tritonconv.geometry import ConvGeometry, RowGeometry

X86, ARM = "x86_64-unknown-linux-gnu", "aarch64-unknown-linux-gnu"
AVX2 = "+avx,+avx2,+fma,+f16c"
AVX512 = AVX2 + ",+avx512f,+avx512dq,+avx512vl"


@dataclass(frozen=True)
class Processor:
    """`multiply`: the instruction that the products' inner loops are made of. `half`: half to single precision."""

    triple: str
    features: str
    lanes: int
    multiply: str
    half: str

    def target(self, name: str) -> target.Target:
        return target.describe(self.triple, name, self.features)


PROCESSORS = {
    "x86-64-v2": Processor(X86, "", 4, r"mulps .*%xmm", "__extendhfsf2"),
    "haswell": Processor(X86, AVX2, 8, r"vfmadd\d+ps .*%ymm", "vcvtph2ps"),
    "znver3": Processor(X86, AVX2, 8, r"vfmadd\d+ps .*%ymm", "vcvtph2ps"),
    "skylake-avx512": Processor(X86, AVX512, 16, r"vfmadd\d+ps .*%zmm", "vcvtph2ps"),
    "znver4": Processor(X86, AVX512 + ",+avx512bf16", 16, r"vfmadd\d+ps .*%zmm", "vcvtph2ps"),
    "sapphirerapids": Processor(X86, AVX512 + ",+avx512bf16,+avx512fp16", 16, r"vfmadd\d+ps .*%zmm", "vcvtph2psx?"),
    "neoverse-n1": Processor(ARM, "+neon", 4, r"fmla v\d+\.4s", "fcvtl"),
    "neoverse-v1": Processor(ARM, "+neon", 4, r"fmla v\d+\.4s", "fcvtl"),
}


def lowered(machine: target.Target, kernel, signature: dict[str, str], constexprs: dict, **options):
    backend = CPUBackend(cpu_target())
    options = backend.parse_options(options)
    module = build.front_end(ASTSource(kernel, signature, constexprs, {}), backend, options)
    return build.lower_module(module, machine, options)


def assembly(processor: str, *kernel, **options) -> list[str]:
    """The kernel's instructions and labels for a processor, operands separated by single spaces."""
    machine = PROCESSORS[processor].target(processor)
    text = jit.emit_assembly(lowered(machine, *kernel, **options).llvm, machine)
    lines = (" ".join(re.split(r"#(?!\d)|//", line)[0].split()) for line in text.splitlines())
    return [line for line in lines if line and (line[0] != "." or line.endswith(":"))]


def test_the_documentation_shows_what_becomes_of_its_kernel():
    """Lines of TTIR, LLVM IR and assembly, but for the names of values; "…" stands for the rest of a line."""
    root = Path(__file__).parents[2]
    page = (root / "docs" / "cpu-target.md").read_text(encoding="utf-8").partition("## Matrix products")[0]
    blocks = dict(re.findall(r"```(\w+)\n(.*?)```", page, re.DOTALL))
    types = {"x_ptr": "*fp32", "y_ptr": "*fp32", "z_ptr": "*fp32", "size": "i32"}
    machine = PROCESSORS["haswell"].target("haswell")
    llvm = lowered(machine, add, types | {"BLOCK": "constexpr"}, {"BLOCK": 1024}).llvm
    made = {"python": (root / "examples" / "add.py").read_text(encoding="utf-8"), "llvm": llvm}
    made |= {"mlir": show.stages(add, types, {"BLOCK": 1024})["ttir"], "asm": jit.emit_assembly(llvm, machine)}

    def lines(text: str) -> list[str]:
        return [re.sub(r"%\w+|\d+(?=:$)", "%", line.partition(" ;")[0].strip()) for line in text.splitlines()]

    assert blocks.keys() == made.keys()
    for language, block in blocks.items():
        there = lines(made[language])
        for line in lines(block):
            assert any(whole.startswith(line.partition("…")[0]) for whole in there), line


def innermost_loops(lines: list[str]) -> list[list[str]]:
    at = {line[:-1]: i for i, line in enumerate(lines) if line.endswith(":")}
    jumps = [i for i, line in enumerate(lines) if re.match(r"j|b\.|b |cbn?z|tbn?z", line)]
    loops = [(at[label], i) for i in jumps if at.get(label := lines[i].split()[-1], i + 1) <= i]
    return [lines[a : b + 1] for a, b in loops if not any(a <= c and d <= b and (c, d) != (a, b) for c, d in loops)]


def product_loop(lines: list[str], multiply: str) -> list[str]:
    """The innermost loop with the most multiplications, from the first of them to the last."""

    def places(loop):
        return [i for i, line in enumerate(loop) if re.match(multiply, line)]

    loop = max(innermost_loops(lines), key=lambda loop: len(places(loop)))
    return loop[places(loop)[0] : places(loop)[-1] + 1]


def requested(start, *dtypes: torch.dtype | None) -> tuple:
    request = engine.request(start, dtypes)
    return request.kernel, request.signature, request.constexprs


def convolution(dtype: torch.dtype, columns: int, residual: torch.dtype | None = None, K: int = 64) -> tuple:
    geometry = ConvGeometry(1, 64, 56, 56, K, 3, 3, (1, 1), ((1, 1), (1, 1)))
    config = TileConfig(BM=128, BN=columns, BK=64)
    start = launch.conv.fprop_launch("cpu", geometry, dtype, "ieee", "relu", config)
    return requested(start, *(dtype,) * 4, *(None,) * 5, residual, None)


def convolution_1d(op: str, columns: int) -> tuple:
    geometry, dtype = RowGeometry(2, 64, 1, 500, 64, 1, 3, padding=((0, 0), (2, 2))), torch.float32
    config = TileConfig(BM=64, BN=columns, BK=32)
    if op == "wgrad":
        start = launch.conv1d.wgrad_launch("cpu", geometry, dtype, "ieee", True, config)
        return requested(start, *(dtype,) * 3)
    start = launch.conv1d.fprop_launch("cpu", geometry, dtype, "ieee", "relu", config)
    return requested(start, *(dtype,) * 4, *(None,) * 7)


def matrix_product(dtype: str, columns: int) -> tuple:
    constexprs = {"BM": 128, "BN": columns, "BK": 128, "GROUP_M": 4}
    types = {name: f"*{dtype}" if name.endswith("ptr") else "i32" for name in programs.matmul.arg_names}
    return programs.matmul, types | dict.fromkeys(constexprs, "constexpr"), constexprs


KERNELS = {
    "convolution f32": lambda columns: convolution(torch.float32, columns),
    "convolution bf16": lambda columns: convolution(torch.bfloat16, columns),
    "1-D convolution f32": lambda columns: convolution_1d("fprop", columns),
    "its weight gradient": lambda columns: convolution_1d("wgrad", columns),
    "matmul fp32": lambda columns: matrix_product("fp32", columns),
    "matmul fp16": lambda columns: matrix_product("fp16", columns),
}


@pytest.mark.parametrize(
    ("kernel", "vectors"), [*((kernel, 4) for kernel in KERNELS), ("convolution f32", 1), ("convolution f32", 2)]
)
@pytest.mark.parametrize("processor", PROCESSORS)
def test_products_stay_in_registers(processor, vectors, kernel):
    """Every multiplication of the inner loop works on whole vectors; between them, nothing goes to the stack."""
    p = PROCESSORS[processor]
    loop = product_loop(assembly(processor, *KERNELS[kernel](vectors * p.lanes)), p.multiply)
    rows, columns = p.target(processor).dot_tile(vectors)
    multiplications = [line for line in loop if re.match(p.multiply, line)]
    assert len(multiplications) in (rows * columns * turns for turns in (1, 2, 4))
    # Of SSE's code for a loop written out four times, LLVM keeps one of the many products on the stack.
    spilled = 2 if (processor, kernel) == ("x86-64-v2", "1-D convolution f32") else 0
    assert len([line for line in loop if re.search(r"\(%[re]sp|\[sp", line)]) <= spilled


@pytest.mark.parametrize("vectors", [1, 2])
@pytest.mark.parametrize("processor", PROCESSORS)
def test_sums_of_a_depthwise_gradient_stay_in_registers(processor, vectors):
    """One of dy's vectors, read once, for each tap of a row."""
    p = PROCESSORS[processor]
    geometry = ConvGeometry(1, 64, 56, 56, 64, 3, 3, (1, 1), ((1, 1), (1, 1)), groups=64)
    config = TileConfig(1, vectors * p.lanes, BK=9 if 9 * vectors < p.target(processor).registers - vectors else 3)
    made = launch.depthwise.wgrad_launch("cpu", geometry, torch.float32, config)
    request = engine.request(made, (torch.float32,) * 3)
    lines = assembly(processor, request.kernel, request.signature, request.constexprs, disjoint=True)
    loop = product_loop(lines, p.multiply)
    assert len([line for line in loop if re.match(p.multiply, line)]) == 3 * vectors
    assert not [line for line in loop if re.search(r"\(%[re]sp|\[sp", line)]
    assert not [line for line in loop if re.match(r"v?mov[au]p[sd] .*\)$|st[rp] q", line)]  # a vector written


@pytest.mark.parametrize(
    ("processor", "K", "multiply"),
    [
        *((name, 3 * PROCESSORS[name].lanes, PROCESSORS[name].multiply) for name in ("znver3", "znver4")),
        ("znver4", 24, r"vfmadd\d+ps .*%ymm"),  # whose vectors of 64 bytes are worked on in halves
    ],
)
def test_columns_that_nobody_stores_are_not_computed(processor, K, multiply):
    """Three quarters of a tile, in three vectors."""
    lines = assembly(processor, *convolution(torch.float32, triton.next_power_of_2(K), K=K))
    loop = product_loop(lines, multiply)
    rows, columns = PROCESSORS[processor].target(processor).dot_tile(3)
    assert columns == 3
    assert len([line for line in loop if re.match(multiply, line)]) in (rows * columns * turns for turns in (1, 2, 4))
    assert not [line for line in loop if re.search(r"\(%[re]sp", line)]


@triton.jit
def across(x, out):
    i = tl.arange(0, 32)[:, None]
    j = tl.arange(0, 32)[None, :]
    tl.store(out + i * 32 + j, tl.load(x + i + j * 64) + 1)


@pytest.mark.parametrize("processor", [name for name, p in PROCESSORS.items() if "avx" in p.features])
def test_what_is_written_across_is_turned_in_registers(processor):
    lines = assembly(processor, across, {"x": "*fp32", "out": "*fp32"}, {}, disjoint=True)
    assert not [line for line in lines if re.match(r"v(scatter|gather|pinsr|insertps|movss)", line)]


@pytest.mark.parametrize("vectors", [1, 2, 4, 8])
@pytest.mark.parametrize("processor", [name for name, p in PROCESSORS.items() if "avx" in p.features])
def test_operands_are_packed_by_vectors(processor, vectors):
    """Be a register tile's panel wider than the vectors that are copied into it or not: no element goes alone."""
    lines = assembly(processor, *matrix_product("fp32", vectors * PROCESSORS[processor].lanes))
    assert not [line for line in lines if re.match(r"v(scatter|gather|pextr|extractps)", line)]


@pytest.mark.parametrize("columns", [4, 8, 16, 32, 64])
@pytest.mark.parametrize("processor", PROCESSORS)
def test_register_tiles_compute_the_same(processor, columns):
    """This machine, given the vectors and register tiles of another: tiles that do not divide the product's."""
    other = PROCESSORS[processor].target(processor)
    machine = replace(target.host(), vector_bytes=other.vector_bytes, dot_tiles=other.dot_tiles)
    kernel = runtime.Kernel(build.assemble(lowered(machine, *matrix_product("fp32", columns)), machine))
    a, b, c = torch.randn(77, 150), torch.randn(150, 50), torch.zeros(77, 50)
    kernel((triton.cdiv(50, columns), 1, 1), [a.data_ptr(), b.data_ptr(), c.data_ptr(), 77, 50, 150, 150, 50, 50])
    torch.testing.assert_close(c.double(), a.double() @ b.double(), rtol=1e-5, atol=1e-4)


@triton.jit
def linear(x, w, y, M, N, K, BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr):
    """y = x wᵀ: memory holds w's rows along the reduction, and a product wants them across."""
    m, n, k = tl.arange(0, BM), tl.program_id(0) * BN + tl.arange(0, BN), tl.arange(0, BK)
    acc = tl.zeros((BM, BN), tl.float32)
    for start in range(0, K, BK):
        left = tl.load(x + m[:, None] * K + (start + k)[None, :], mask=(start + k < K)[None, :], other=0.0)
        right = tl.load(w + n[None, :] * K + (start + k)[:, None], mask=(start + k < K)[:, None], other=0.0)
        acc = tl.dot(left, right, acc)
    tl.store(y + m[:, None] * N + n[None, :], acc, mask=(m < M)[:, None])


def transposed_product(dtype: str, columns: int) -> tuple:
    constexprs = {"BM": 16, "BN": columns, "BK": 64}
    types = {"x": f"*{dtype}", "w": f"*{dtype}", "y": "*fp32", "M": "i32", "N": "i32", "K": "i32"}
    return linear, types | dict.fromkeys(constexprs, "constexpr"), constexprs


@triton.jit
def few_columns(x_ptr, y_ptr, rows, C: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr):
    m, n = tl.arange(0, BM), tl.arange(0, BN)
    mask = (m < rows)[:, None] & (n < C)[None, :]
    x = tl.load(x_ptr + m[:, None] * C + n[None, :], mask=mask, other=0.0)
    tl.store(y_ptr + m[:, None] * BN + n[None, :], x + 1)


def test_avx2_reads_nothing_past_a_mask():
    """Of the upper half of the vector no lane is there: LLVM would read that half without a mask."""
    constexprs = {"C": 4, "BM": 8, "BN": 16}
    types = {"x_ptr": "*fp32", "y_ptr": "*fp32", "rows": "i32"} | dict.fromkeys(constexprs, "constexpr")
    llvm = lowered(PROCESSORS["haswell"].target("haswell"), few_columns, types, constexprs).llvm
    assert "@llvm.x86.avx.maskload.ps.256" in llvm and "@llvm.masked.load" not in llvm
    x, y, want = torch.full((256,), float("nan")), torch.zeros(8, 16), torch.ones(8, 16)
    x[:20] = torch.arange(20.0)
    want[:5, :4] += x[:20].view(5, 4)
    kernel = runtime.Kernel(build.assemble(lowered(target.host(), few_columns, types, constexprs), target.host()))
    kernel((1, 1, 1), [x.data_ptr(), y.data_ptr(), 5])
    assert torch.equal(y, want)


@pytest.mark.parametrize("dtype", ["fp32", "fp16"])
@pytest.mark.parametrize("columns", [4, 8, 16, 64])
@pytest.mark.parametrize("processor", ["x86-64-v2", "haswell", "znver4"])
def test_operands_are_turned_in_registers(processor, columns, dtype):
    """This machine with the vectors of another; K with a tail."""
    other = PROCESSORS[processor].target(processor)
    machine = replace(target.host(), vector_bytes=other.vector_bytes, dot_tiles=other.dot_tiles)
    kernel = runtime.Kernel(build.assemble(lowered(machine, *transposed_product(dtype, columns)), machine))
    half = {"fp32": torch.float32, "fp16": torch.float16}[dtype]
    x, w, y = torch.randint(-8, 9, (16, 150)).to(half), torch.randint(-8, 9, (64, 150)).to(half), torch.zeros(16, 64)
    kernel((64 // columns, 1, 1), [x.data_ptr(), w.data_ptr(), y.data_ptr(), 16, 64, 150])
    assert torch.equal(y, x.float() @ w.float().T)


@pytest.mark.parametrize("processor", [name for name, p in PROCESSORS.items() if "avx" in p.features])
def test_turned_operands_are_no_gathers(processor):
    lines = assembly(processor, *transposed_product("fp32", 64))
    assert not [line for line in lines if re.match(r"v(scatter|gather|pextr|extractps)", line)]


@pytest.mark.parametrize("processor", PROCESSORS)
def test_half_precision_is_converted_by_the_processor(processor):
    text = "\n".join(assembly(processor, *matrix_product("fp16", 64)))
    assert re.search(PROCESSORS[processor].half, text)


@triton.jit
def everything(x, out, n, BLOCK: tl.constexpr):
    """One of each kind of code: masks, gathers, functions, reductions, scans, atomics, integer division."""
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    v = tl.load(x + i, mask=i < n, other=0.0).to(tl.float32)
    v = tl.exp(v) + tl.erf(v) + tl.load(x + (i * 7) % n, mask=i % 3 == 0, other=1.0).to(tl.float32)
    v += tl.sum(v, 0) + tl.cumsum(v, 0) + (i // n).to(tl.float32)
    tl.atomic_add(out + i % 16, v, mask=i < n)


@pytest.mark.parametrize("dtype", ["fp16", "bf16", "fp32", "fp64"])
@pytest.mark.parametrize("processor", PROCESSORS)
def test_every_kind_of_code_compiles(processor, dtype):
    signature = {"x": f"*{dtype}", "out": "*fp32", "n": "i32", "BLOCK": "constexpr"}
    lines = assembly(processor, everything, signature, {"BLOCK": 256})
    assert "everything:" in lines and any(line.startswith("ret") for line in lines)


@pytest.mark.parametrize(
    ("triple", "features", "bytes"),
    [(X86, "", 16), (X86, "+sse4.2,-avx", 16), (X86, "+avx", 32), (X86, AVX2, 32), (X86, "+avx,+avx512f,-avx512vl", 32),
     (X86, AVX512, 64), (ARM, "+neon", 16), ("arm64-apple-darwin", "+neon", 16)],
)  # fmt: skip
def test_vectors_follow_from_features(triple, features, bytes):
    machine = target.describe(triple, "generic", features)
    assert machine.vector_bytes == bytes
    assert [machine.lanes(size) for size in (1, 4, 8, 128)] == [bytes, bytes // 4, bytes // 8, 1]
    for vectors in (1, 2, 4, 8):
        assert vectors % machine.dot_tile(vectors)[1] == 0


ROWS = {"x_ptr": "*fp32", "y_ptr": "*fp32", "N": "i32"}


@pytest.mark.parametrize(
    ("processor", "instruction"),
    [
        *(("znver3", "vmovntps .*ymm"), ("znver4", "vmovntps .*zmm"), ("neoverse-v1", "stnp q")),
        *(("znver4", f"{name} .*zmm") for name in ("vscalefps", "vrangeps")),
    ],
)
def test_instructions_of_a_processor(processor, instruction):
    """Stores past the caches; x · 2^n and a limit within exp."""
    lines = assembly(processor, programs.softmax, ROWS | {"BLOCK": "constexpr"}, {"BLOCK": 1024})
    assert any(re.match(instruction, line) for line in lines)


@pytest.mark.parametrize("processor, instruction", (("znver4", "prefetcht0 "), ("neoverse-n1", "prfm pldl1keep,")))
def test_a_residual_is_asked_for_before_the_product(processor, instruction):
    dtype = torch.float32
    asks, does_not = (
        assembly(processor, *convolution(dtype, 64, residual), disjoint=True) for residual in (dtype, None)
    )
    assert any(line.startswith(instruction) for line in asks)
    assert not any(line.startswith(instruction) for line in does_not)


@pytest.mark.parametrize(("C", "asks"), ((512, True), (64, False)))
@pytest.mark.parametrize(("processor", "instruction"), (("znver3", "prefetcht1 "), ("neoverse-n1", "prfm pldl2keep,")))
def test_filters_that_come_from_memory_are_asked_for(processor, instruction, C, asks, monkeypatch):
    monkeypatch.setattr(launch.winograd, "caches", lambda: target.Caches(32 << 10, 512 << 10, 32 << 20))
    problem, f32 = ConvGeometry(1, C, 14, 14, C, 3, 3, padding=((1, 1), (1, 1))), torch.float32
    config = TileConfig(16, 32, C // 2, OUT=4)
    start = launch.winograd.fprop_launch("cpu", problem, f32, "ieee", None, 2, config)
    lines = assembly(processor, *requested(start, f32, f32, None, f32, *(None,) * 8, f32), disjoint=True)
    assert any(line.startswith(instruction) for line in lines) == asks


@pytest.mark.parametrize(("processor", "past"), (("znver3", False), ("znver4", True)))
def test_parts_of_lines_are_written_to_the_caches(processor, past):
    """Winograd's filters, of which one turn writes a vector for each of 36 points: a line, or a half of one."""
    problem, f32 = ConvGeometry(1, 64, 14, 14, 64, 3, 3, padding=((1, 1), (1, 1))), torch.float32
    start = launch.winograd.filter_launch("cpu", "fprop", problem, (576, 9, 3, 1), 4, 32)
    lines = assembly(processor, *requested(start, f32, f32), disjoint=True)
    assert any(line.startswith("vmovntps") for line in lines) == past


def test_what_a_panel_reads_is_read_where_it_is_known_which_rows_it_has():
    """The residual of rows that all take part, and of others, is read behind the product, not before the branch."""
    kernel = convolution(torch.float32, 64, torch.float32)
    text = lowered(PROCESSORS["znver4"].target("znver4"), *kernel, disjoint=True).llvm
    blocks = re.split(r"^(?=\S+:)", text, flags=re.MULTILINE)
    branching = [block for block in blocks if re.search(r"br i1 \S+, label %whole", block)]
    assert branching and not any("load <" in block for block in branching)
