"""The stock Anthropic client, pointed at the gateway: a call, a stream, and the budget that ends it."""

from __future__ import annotations

import os
import uuid

from anthropic import Anthropic, APIStatusError
from anthropic.types import MessageParam

client = Anthropic(
    base_url=os.environ.get("BEHEST_BASE_URL", "http://127.0.0.1:8080/v1").removesuffix("/v1"),  # the line
    api_key=os.environ["BEHEST_API_KEY"],
    # Each run is a session of its own: a budget per session never begins anew.
    default_headers={"X-End-User-Id": "u-7", "X-Session-Id": f"anthropic-{uuid.uuid4()}"},
)
model = "claude-haiku-4-5"
hello: list[MessageParam] = [{"role": "user", "content": "Hello"}]

calls = 0
try:
    answer = client.messages.with_raw_response.create(model=model, messages=hello, max_tokens=30)
    print("One call:", *(block.text for block in answer.parse().content if block.type == "text"))
    print(f"   trace {answer.headers['x-trace-id']}, {answer.headers['x-budget-left']} left")
    calls += 1

    print("A streamed one:", end=" ")
    with client.messages.stream(model=model, messages=hello, max_tokens=30) as stream:
        for text in stream.text_stream:
            print(text, end="", flush=True)
    print()
    calls += 1

    while True:
        client.messages.create(model=model, messages=hello, max_tokens=400)
        calls += 1
except APIStatusError as error:
    if error.status_code != 402:
        raise
    said = error.body["error"] if isinstance(error.body, dict) else {"message": error.message}
    print(f"Stopped before call {calls + 1}: {error.status_code} {said.get('code')}")
    print(f"   {said['message']}")
