"""A compiler of convolution blocks: `tritonconv.patch(model)` runs a PyTorch CNN on fused Triton kernels."""

import importlib

# Names and where they live. They are imported when first used: Triton, while it is itself being imported, loads its CPU
# target from this package, and can then give nothing to the rest of it.
_PUBLIC = {
    "load_package": "targets.package",
    "patch": "patching.patch",
    "patched": "patching.patch",
    "plan": "survey.planning",
    "report": "patching.patch",
    "summary": "survey.summarizing",
    "tune": "tuning",
    "unpatch": "patching.patch",
}
_MODULES = ("functional", "nn")

__all__ = sorted([*_PUBLIC, *_MODULES])


def __getattr__(name: str):
    if name in _MODULES:
        return importlib.import_module(f".{name}", __name__)
    if name not in _PUBLIC:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = globals()[name] = getattr(importlib.import_module(f".{_PUBLIC[name]}", __name__), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
