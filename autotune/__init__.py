"""Tuning knowledge: the best known configuration per problem key, and the search for it. It knows nothing of what is
being configured."""

from .search import Problem
from .session import Outcome, Tuning, deadline_of, tune
from .shipped import lookup, ship
from .store import asked, record

__all__ = ["Outcome", "Problem", "Tuning", "asked", "deadline_of", "lookup", "record", "ship", "tune"]
