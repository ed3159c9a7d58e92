"""A program of Behest's users, as its documentation has them write it: the stock client, two headers."""

import os
import sys

from openai import OpenAI

user, conversation = sys.argv[1:]
client = OpenAI(
    base_url=os.environ["BEHEST_BASE_URL"],
    api_key=os.environ["BEHEST_API_KEY"],
    default_headers={"X-End-User-Id": user, "X-Session-Id": f"user-{user}-conv-{conversation}"},
)
completion = client.chat.completions.create(
    model="gemini-2.5-flash", messages=[{"role": "user", "content": "Sum this up for me."}]
)
print(completion.choices[0].message.content)
