"""Providers' HTTP formats: what a request may come to, and what a reply says of its cost.

Plain JSON values in, plain values out: no I/O, no SDK, no prices, no budgets.
"""

from .bounds import RequestBound
from .changes import asks_stream_usage, with_output_limit, with_stream_usage, without_stream_usage
from .images import image_bound
from .openai import STORED_CONTEXT, operation_of
from .replies import Reply, ReplyReader, SSEReader, parse_json, read_whole
from .wires import EMBEDDINGS, METERED_OPERATIONS, bound_request

__all__ = [
    "EMBEDDINGS",
    "METERED_OPERATIONS",
    "STORED_CONTEXT",
    "Reply",
    "ReplyReader",
    "RequestBound",
    "SSEReader",
    "asks_stream_usage",
    "bound_request",
    "image_bound",
    "operation_of",
    "parse_json",
    "read_whole",
    "with_output_limit",
    "with_stream_usage",
    "without_stream_usage",
]
