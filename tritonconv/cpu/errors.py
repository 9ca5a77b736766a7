"""What the CPU target reports."""


class UnsupportedOp(NotImplementedError):
    """A TTIR operation that the CPU target does not lower."""

    def __init__(self, op, why: str = ""):
        super().__init__(
            f"the CPU target cannot lower {op.name}{': ' + why if why else ''} ({op.loc or 'unknown line'})"
        )
