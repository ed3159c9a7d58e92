"""Amazon Bedrock by boto3: clients of `bedrock-runtime`."""

from __future__ import annotations

from typing import TypeVar

from ...engine.engine import Engine
from ...rules.errors import need
from ..kit.instrument import on_import
from ..kit.undo import Undo

C = TypeVar("C")


class BedrockDoor(Engine):
    """boto3 (botocore)."""

    def bedrock(self, client: C, *, provider: str | None = None) -> C:
        """A client of `bedrock-runtime`, its every attempt metered from now on: Converse, whole and streamed,
        and what Claude is asked by InvokeModel.

            bedrock = meter.bedrock(boto3.client("bedrock-runtime"))

        It is `client` itself: botocore's clients cannot be made anew. The output limit is put in, or lowered,
        before the request is signed. botocore's own retries are calls of their own. A refusal comes out as it
        is, and is not repeated. Counting tokens is free; guardrails that are asked alone, asynchronous
        invocations, and models whose body is their own need a price of their own (`Meter(allow=...)`).

        Args:
            client: made by boto3 or botocore, not by aiobotocore.
            provider: whose prices apply; default: Bedrock's.

        Raises:
            MissingExtra: botocore is not installed.
            ConfigError: no such client, or metered already.
        """
        with need("boto3", "bedrock"):
            import botocore.client  # noqa: F401
        from .metering import meter_client

        meter_client(self, client, provider)
        return client

    @on_import("botocore.client")
    def instrument_bedrock(self) -> Undo:
        """Meter every client of `bedrock-runtime` that is made from now on, by boto3 or by botocore.

        Returns:
            What ends it: `.remove()`, or `with`.
        """
        from .metering import meter_all

        return meter_all(self)
