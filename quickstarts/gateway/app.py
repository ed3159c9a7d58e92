"""An app whose users call the gateway from their browsers, each with a token of their own.

The app holds the API key and mints a token for whoever is logged in. The token binds its user and
session: no browser ever sees the key, or can call for somebody else.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Annotated, Any

import httpx
from fastapi import Depends, FastAPI, HTTPException
from fastapi.responses import HTMLResponse
from fastapi.security import HTTPBasic, HTTPBasicCredentials

BASE_URL = os.environ.get("BEHEST_BASE_URL", "http://127.0.0.1:8080/v1")
USERS = {"ada": "lovelace", "alan": "turing"}


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    key = {"Authorization": f"Bearer {os.environ['BEHEST_API_KEY']}"}
    async with httpx.AsyncClient(base_url=BASE_URL, headers=key) as gateway:
        app.state.gateway = gateway
        yield


app = FastAPI(lifespan=lifespan)


def logged_in(given: Annotated[HTTPBasicCredentials, Depends(HTTPBasic())]) -> str:
    """The user's id; in your app, from your own login."""
    expected = USERS.get(given.username, secrets.token_hex())
    if not secrets.compare_digest(given.password.encode(), expected.encode()):
        raise HTTPException(401, "Not a user here.", headers={"WWW-Authenticate": "Basic"})
    return given.username


@app.post("/token")
async def token(user: Annotated[str, Depends(logged_in)]) -> dict[str, Any]:
    """A token for this user, for ten minutes."""
    answered = await app.state.gateway.post("/auth/mint", json={"user_id": user, "ttl": 600})
    answered.raise_for_status()
    return {**answered.json(), "base_url": BASE_URL}


@app.get("/")
async def page(user: Annotated[str, Depends(logged_in)]) -> HTMLResponse:
    return HTMLResponse(PAGE)


PAGE = """<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>Ask</title>
<link rel="icon" href="data:,">
<style>
  body { font: 16px/1.5 system-ui, sans-serif; max-width: 40rem; margin: 3rem auto; padding: 0 1rem; }
  form { display: flex; gap: .5rem; }
  input { flex: 1; padding: .5rem; font: inherit; }
  button { padding: .5rem 1rem; font: inherit; }
  #answer { white-space: pre-wrap; min-height: 6rem; margin-top: 1rem; }
  #left { color: #555; }
</style>
<h1>Ask</h1>
<form><input aria-label="Your question" value="Hello" required><button>Ask</button></form>
<div id="answer" role="status"></div>
<p id="left"></p>
<script>
  const form = document.querySelector("form"), answer = document.querySelector("#answer");
  let access;
  form.addEventListener("submit", async (event) => {
    event.preventDefault();
    answer.textContent = "";
    access ??= await (await fetch("/token", { method: "POST" })).json();
    const response = await fetch(access.base_url + "/chat/completions", {
      method: "POST",
      headers: { "Authorization": `Bearer ${access.token}`, "Content-Type": "application/json" },
      body: JSON.stringify({
        model: "gpt-4o", max_tokens: 100, stream: true,
        messages: [{ role: "user", content: form.elements[0].value }],
      }),
    });
    const told = (name) => decodeURIComponent(response.headers.get(name));
    document.querySelector("#left").textContent = `${told("x-budget-left")} left of "${told("x-budget")}"`;
    if (!response.ok) {
      answer.textContent = (await response.json()).error.message;
      if (response.status === 401) access = undefined;
      return;
    }
    const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
    let text = "";
    for (;;) {
      const { done, value } = await reader.read();
      if (done) break;
      text += value;
      const lines = text.split("\\n");
      text = lines.pop();
      for (const line of lines) {
        if (!line.startsWith("data: {")) continue;
        answer.textContent += JSON.parse(line.slice(6)).choices[0]?.delta.content ?? "";
      }
    }
  });
</script>
</html>
"""
