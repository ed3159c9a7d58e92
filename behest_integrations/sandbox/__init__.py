"""An OpenAI-compatible provider on this machine, for quickstarts, tests and demos.

It answers chat, completions, responses, embeddings and models, streamed and not, respects
the limits sent, reports honest usage, fails on demand, and keeps a bill of its own: the
ground truth that a meter's report is held against.
"""

from .bill import Bill, BillLine
from .server import Sandbox

__all__ = ["Bill", "BillLine", "Sandbox"]
