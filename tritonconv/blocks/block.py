"""The compiler's intermediate representation: what one fused block is made of.

A block names modules by their path below the *owner*, the module whose forward calls them, and holds no module,
parameter or shape. So it survives deepcopy, a new input size and a module that is moved or retrained.
"""

from dataclasses import dataclass

from ..geometry import Pair


def _name(activation: str | None) -> str | None:
    return activation and activation.partition("(")[0]


@dataclass(frozen=True)
class ConvBlock:
    """Convolution, bias, an inner activation, batch norm, the addition of a residual, activation, max-pooling.

    `kind` is the convolution's function. Where padding comes before it, `padding` is that, as `F.pad` takes it; where
    what a 1-D one padded itself is sliced off after it, it is negative.
    `norm_call`: whether the forward normalizes by calls, and no module of torch's does. `activation` is its text;
    `activation_module` is None where the forward calls a function instead, and `slopes` then the path of the parameter
    that it hands to PReLU. So it is with `inner`, which has no slopes. Of `window` and `pool_module`, too, one is None,
    or both without pooling; `ceil_mode` goes with `window`. `pool_first`: whether the activation comes last.
    """

    kind: str
    conv: str
    padding: tuple[int, ...] = ()
    inner: str | None = None
    inner_module: str | None = None
    norm: str | None = None
    norm_call: bool = False
    residual: bool = False
    activation: str | None = None
    activation_module: str | None = None
    slopes: str | None = None
    window: Pair | None = None
    ceil_mode: bool = False
    pool_module: str | None = None
    pool_first: bool = False

    @property
    def pools(self) -> bool:
        return self.window is not None or self.pool_module is not None

    @property
    def pattern(self) -> str:
        last = self._ordered(_name(self.activation), self.pools and "max_pool2d")
        pad = max(self.padding, default=0) > 0 and "pad"
        slice = min(self.padding, default=0) < 0 and "slice"
        norm = (self.norm or self.norm_call) and "batch_norm"
        parts = pad, self.kind, slice, _name(self.inner), norm, self.residual and "add", *last
        return "+".join(part for part in parts if part)

    @property
    def site(self) -> str:
        """The path of the module that the block goes by; None where a call is all there is."""
        return self.conv

    @property
    def members(self) -> tuple[str, ...]:
        last = self._ordered(self.activation_module, self.pool_module)
        paths = self.conv, self.inner_module, self.norm, *last
        return tuple(path for path in paths if path is not None)

    def _ordered(self, activation, pool) -> tuple:
        return (pool, activation) if self.pool_first else (activation, pool)


@dataclass(frozen=True)
class ActivatedBlock:
    """A module of another kind, or a call of a norm's function, and the batch norm and the activation after it.

    `readers`: if they alone read what it gives, the convolutions behind it.
    """

    kind: str
    module: str | None
    norm: str | None = None
    norm_call: bool = False
    activation: str | None = None
    activation_module: str | None = None
    slopes: str | None = None
    readers: tuple[str, ...] = ()

    @property
    def pattern(self) -> str:
        norm = (self.norm or self.norm_call) and "batch_norm"
        parts = self.kind, norm, _name(self.activation)
        return "+".join(part for part in parts if part)

    @property
    def site(self) -> str | None:
        return self.module

    @property
    def members(self) -> tuple[str, ...]:
        return tuple(path for path in (self.module, self.norm, self.activation_module) if path is not None)


@dataclass(frozen=True)
class PoolBlock:
    """Pooling, `pattern` being the function's name. `pool` is None where the forward calls that, and no module."""

    pattern: str
    pool: str | None = None

    @property
    def site(self) -> str | None:
        return self.pool

    @property
    def members(self) -> tuple[str, ...]:
        return () if self.pool is None else (self.pool,)


@dataclass(frozen=True)
class AveragedBlock:
    """A 1 × 1 convolution and the average pooling after it, `pooling` being the function's name. The pooling comes
    first: that gives the same, of fewer pixels."""

    conv: str
    pooling: str
    pool: str

    @property
    def pattern(self) -> str:
        return f"conv2d+{self.pooling}"

    @property
    def site(self) -> str:
        return self.conv

    @property
    def members(self) -> tuple[str, ...]:
        return self.conv, self.pool


@dataclass(frozen=True)
class CallBlock:
    """A convolution whose function the forward calls on parameters, and what comes after it; the rest as above."""

    function: str
    padding: tuple[int, ...] = ()
    inner: str | None = None
    inner_module: str | None = None
    residual: bool = False
    activation: str | None = None
    activation_module: str | None = None
    slopes: str | None = None

    @property
    def pattern(self) -> str:
        pad = max(self.padding, default=0) > 0 and "pad"
        parts = pad, self.function, _name(self.inner), self.residual and "add", _name(self.activation)
        return "+".join(part for part in parts if part)

    @property
    def site(self) -> None:
        return None

    @property
    def members(self) -> tuple[str, ...]:
        return tuple(path for path in (self.inner_module, self.activation_module) if path is not None)


@dataclass(frozen=True)
class DropoutBlock:
    """A call of F.dropout."""

    pattern: str = "dropout"
    site: None = None
    members: tuple[()] = ()


Block = ConvBlock | ActivatedBlock | PoolBlock | AveragedBlock | CallBlock | DropoutBlock
