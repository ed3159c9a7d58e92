"""Every quickstart runs as a newcomer would run it: from the repository, without a key."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from support import slow

from behest_integrations.sandbox import Sandbox

ROOT = Path(__file__).parent.parent
QUICKSTARTS = sorted((ROOT / "quickstarts").glob("*.py"))
# What each must show, besides ending well.
SHOWS = {
    "openai_client.py": [
        "One call:",
        "A streamed one:",
        "Stopped before call",
        "session conversation-42",
        "total",
    ],
    "anthropic_client.py": [
        "One call:",
        "A streamed one:",
        "Stopped before call",
        "session conversation-42",
        "total",
    ],
    "google_genai_client.py": [
        "One call:",
        "A streamed one:",
        "Stopped before message",
        "session conversation-42",
        "total",
    ],
    "langchain_chain.py": [
        "One call:",
        "A streamed one:",
        "The callback stopped call",
        "its last answer being shorter",
        "conversation-3",
        "total",
    ],
    "llama_index_rag.py": [
        "Indexed 4 documents",
        "A streamed one:",
        "An agent:",
        "Stopped at question",
        "librarian  embeddings",
        "total",
    ],
    "langgraph_agent.py": [
        "searched: Nothing is written",
        "does not allow another step",
        "thread-b",
        "search ",
        "total",
    ],
    "litellm_client.py": [
        "One call:",
        "A streamed one:",
        "Stopped before call",
        "session conversation-42",
        "total",
    ],
    "openai_agents.py": [
        "Two agents, a tool:",
        "A streamed run:",
        "Stopped before run",
        "conversation-42",
        "teller",
        "total",
    ],
    "pydantic_ai_agent.py": [
        "An agent, with a tool:",
        "A streamed one:",
        "A structured one:",
        "Stopped before run",
        "conversation-42",
        "teller",
        "total",
    ],
}
NEEDS = {
    "litellm_client.py": "litellm",
    "openai_agents.py": "agents",
    "pydantic_ai_agent.py": "pydantic_ai",
    "openai_client.py": "openai",
    "anthropic_client.py": "anthropic",
    "google_genai_client.py": "google.genai",
    "langchain_chain.py": "langchain_openai",
    "langgraph_agent.py": "langgraph",
    "llama_index_rag.py": "llama_index.llms.openai",
}


KEYS = {"anthropic_client.py": "ANTHROPIC", "google_genai_client.py": "GEMINI"}


def key_of(path: Path) -> str:
    """Whose key it takes."""
    return KEYS.get(path.name, "OPENAI")


def run(path: Path, folder: Path, **env: str) -> str:
    pytest.importorskip(NEEDS[path.name])
    clean = {
        k: v
        for k, v in os.environ.items()
        if not k.startswith(("OPENAI_", "ANTHROPIC_", "GEMINI_", "GOOGLE_"))
    }
    done = subprocess.run(
        [sys.executable, str(path)],
        capture_output=True, text=True, timeout=300, cwd=folder, env={**clean, **env},
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.parametrize("path", QUICKSTARTS, ids=lambda p: p.name)
def test_a_quickstart_runs_offline(path: Path, tmp_path: Path) -> None:
    said = run(path, tmp_path)
    for words in SHOWS[path.name]:
        assert words in said
    assert f"No {key_of(path)}_API_KEY" in said
    assert not list(tmp_path.iterdir()), "what it leaves behind, a second run would find"


@pytest.mark.parametrize(
    "path",
    # They all take their key by the same lines.
    [p if p.name in ("openai_client.py", *KEYS) else slow(p) for p in QUICKSTARTS],
    ids=lambda p: p.name,
)
def test_a_quickstart_with_a_key_asks_the_provider_it_is_told(path: Path, tmp_path: Path) -> None:
    with Sandbox(output_tokens=4000) as provider:
        key = key_of(path)
        url = provider.base_url if key == "OPENAI" else provider.url
        said = run(path, tmp_path, **{f"{key}_API_KEY": "none", f"{key}_BASE_URL": url})
        assert provider.requests > 1
    for words in SHOWS[path.name]:
        assert words in said
    assert f"No {key_of(path)}_API_KEY" not in said
