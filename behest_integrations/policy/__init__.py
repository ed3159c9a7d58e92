"""What calls are allowed at all, for whom, decided before anything is reserved.

A policy is one for every door: which models, providers and regions may be asked, how much, and with what in
their prompts. It knows no framework, no wire and no store: the engine asks it (`engine.ruling`), and writes
down what it has decided. Where none is configured nothing of this is imported.
"""

from __future__ import annotations

from .policing import Asked, Policing, Verdict
from .settings import Audit, PatternSettings, Pii, Policy, Rule, Sentinel

__all__ = [
    "Asked",
    "Audit",
    "PatternSettings",
    "Pii",
    "Policing",
    "Policy",
    "Rule",
    "Sentinel",
    "Verdict",
]
