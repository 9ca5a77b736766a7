"""The compiler's intermediate representation: blocks, what they call, and how a call is repeated."""
