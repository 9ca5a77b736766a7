"""What `patch` and its kin refuse, in one sentence each."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Iterable
from fnmatch import fnmatchcase

from torch import nn

from ..capture.sites import Accept

# Wrappers by the name of their class (importing some of them takes seconds), and what they hold.
_WRAPPERS = {
    "OptimizedModule": "torch.compile",
    "ScriptModule": "torch.jit",
    "DataParallel": "DataParallel",
    "DistributedDataParallel": "DistributedDataParallel",
    "FullyShardedDataParallel": "FullyShardedDataParallel",
    "FSDPModule": "fully_shard",
}


def require_module(model: object, function: str) -> None:
    """Raises `TypeError` unless `model` is a module."""
    if inspect.isclass(model):
        raise TypeError(f"{function} expects a torch.nn.Module, got the class {model.__name__}: make one of it first")
    if not isinstance(model, nn.Module):
        raise TypeError(f"{function} expects a torch.nn.Module, got {type(model).__name__}")


def require_model(model: object, function: str) -> None:
    """Raises `TypeError` unless `model` is a module, and none that wraps the model."""
    require_module(model, function)
    for cls in type(model).__mro__:
        if cls.__name__ in _WRAPPERS:
            raise TypeError(
                f"{function} expects the model itself, got it wrapped by {_WRAPPERS[cls.__name__]}: "
                f"{function} first, then wrap"
            )


class Globs:
    """The choice of sites by `include`, `exclude` and `filter_fn` of `patch`. Raises `TypeError` for what is none."""

    def __init__(self, include: str | Iterable[str], exclude: str | Iterable[str], filter_fn: Accept | None):
        self._include, self._exclude = _globs("include", include), _globs("exclude", exclude)
        self._filter = filter_fn
        if filter_fn is not None and not callable(filter_fn):
            raise TypeError(f"patch: filter_fn must be a function of a name and a module, got {filter_fn!r}")

    def __call__(self, fqn: str, module: nn.Module) -> bool:
        """Whether the site may be touched."""
        included = any(fnmatchcase(fqn, glob) for glob in self._include)
        excluded = any(fnmatchcase(fqn, glob) for glob in self._exclude)
        return included and not excluded and (self._filter is None or bool(self._filter(fqn, module)))

    def warn_of_unused(self, names: set[str], model: str) -> None:
        """Says which globs match none of the names."""
        for option, globs in (("include", self._include), ("exclude", self._exclude)):
            for glob in globs if names else ():
                if not any(fnmatchcase(name, glob) for name in names):
                    warnings.warn(f"patch: {option}={glob!r} matches no site of {model}", stacklevel=3)


def _globs(option: str, given: str | Iterable[str]) -> tuple[str, ...]:
    globs = (given,) if isinstance(given, str) else tuple(given) if isinstance(given, Iterable) else (given,)
    for glob in globs:
        if not isinstance(glob, str):
            raise TypeError(f"patch: {option} must be glob patterns such as 'features.*', got {glob!r}")
    return globs
