#!/bin/sh
# One call, a stream, and what was spent, with nothing but cURL.
set -eu
base=${BEHEST_BASE_URL:-http://127.0.0.1:8080/v1}
session="curl-$(date +%s)-$$"   # each run is a session of its own: a budget per session never begins anew

echo "One call:"
curl -sS --fail-with-body "$base/chat/completions" \
  -H "Authorization: Bearer $BEHEST_API_KEY" \
  -H "X-End-User-Id: u-7" \
  -H "X-Session-Id: $session" \
  -H "Content-Type: application/json" \
  -d '{"model": "gpt-4o", "max_tokens": 30, "messages": [{"role": "user", "content": "Hello"}]}'

printf '\n\nA streamed one:\n'
curl -sSN --fail-with-body "$base/chat/completions" \
  -H "Authorization: Bearer $BEHEST_API_KEY" \
  -H "X-End-User-Id: u-7" \
  -H "X-Session-Id: $session" \
  -H "Content-Type: application/json" \
  -d '{"model": "gpt-4o", "max_tokens": 10, "stream": true, "messages": [{"role": "user", "content": "Hello"}]}'

printf '\nWhat user u-7 has spent:\n'
curl -sS --fail-with-body -H "Authorization: Bearer $BEHEST_API_KEY" "$base/usage?user_id=u-7"
echo
