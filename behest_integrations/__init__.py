"""Budgets and metering for LLM calls, from inside the frameworks that make them.

Every call is attributed, priced and written down; hard budgets stop a call before it
reaches the provider.
"""

from .engine.contexts import ContextThreadPoolExecutor, bind
from .ledger.book import ThresholdEvent
from .meter import Meter
from .moved import install as _install
from .prices import Price
from .rules.attribution import Attribution, session
from .rules.balance import Balance
from .rules.budgets import Budget, Filter
from .rules.errors import (
    BehestError,
    BudgetExceeded,
    BudgetSyntaxError,
    CallRefused,
    ConfigError,
    LoopDetected,
    MissingExtra,
    PolicyRefused,
    StoreError,
    Unattributed,
    Unbounded,
    UnknownPrice,
    Unmetered,
)
from .rules.usage import Usage

__version__ = "0.1.0"
_install()

__all__ = [
    "Attribution",
    "Balance",
    "BehestError",
    "Budget",
    "BudgetExceeded",
    "BudgetSyntaxError",
    "CallRefused",
    "ConfigError",
    "ContextThreadPoolExecutor",
    "Filter",
    "LoopDetected",
    "Meter",
    "MissingExtra",
    "PolicyRefused",
    "Price",
    "StoreError",
    "ThresholdEvent",
    "Unattributed",
    "Unbounded",
    "UnknownPrice",
    "Unmetered",
    "Usage",
    "__version__",
    "bind",
    "session",
]
