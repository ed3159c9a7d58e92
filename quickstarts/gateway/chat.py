"""The stock OpenAI client, pointed at the gateway: a call, a stream, and the budget that ends it."""

from __future__ import annotations

import os
import uuid

from openai import APIStatusError, OpenAI
from openai.types.chat import ChatCompletionUserMessageParam

client = OpenAI(
    base_url=os.environ.get("BEHEST_BASE_URL", "http://127.0.0.1:8080/v1"),  # the line that changes
    api_key=os.environ["BEHEST_API_KEY"],
    # Each run is a session of its own: a budget per session never begins anew.
    default_headers={"X-End-User-Id": "u-7", "X-Session-Id": f"python-{uuid.uuid4()}"},
)
hello: list[ChatCompletionUserMessageParam] = [{"role": "user", "content": "Hello"}]

calls = 0
try:
    answer = client.chat.completions.with_raw_response.create(model="gpt-4o", messages=hello, max_tokens=30)
    print("One call:", answer.parse().choices[0].message.content)
    print(f"   trace {answer.headers['x-trace-id']}, {answer.headers['x-budget-left']} left")
    calls += 1

    print("A streamed one:", end=" ")
    stream = client.chat.completions.create(model="gpt-4o", messages=hello, max_tokens=30, stream=True)
    for chunk in stream:
        print(chunk.choices[0].delta.content or "", end="", flush=True)
    print()
    calls += 1

    while True:
        client.chat.completions.create(model="gpt-4o", messages=hello, max_tokens=100)
        calls += 1
except APIStatusError as error:
    if error.status_code != 402:
        raise
    print(f"Stopped before call {calls + 1}: {error.status_code} {error.code}")
    print(f"   {error.body['message'] if isinstance(error.body, dict) else error.message}")
