#!/bin/sh
# A program of Behest's users, as its documentation has them write it: two headers, a call.
curl -sS --fail-with-body -X POST "$BEHEST_BASE_URL/chat/completions" \
  -H "Authorization: Bearer $BEHEST_API_KEY" \
  -H "Content-Type: application/json" \
  -H "X-End-User-Id: $1" \
  -H "X-Session-Id: user-$1-conv-$2" \
  -d '{"model": "gemini-2.5-flash", "messages": [{"role": "user", "content": "Sum this up for me."}]}'
