"""Tuning knowledge: the best known configuration per problem key. It knows nothing of what is being configured."""

from .store import lookup, record

__all__ = ["lookup", "record"]
