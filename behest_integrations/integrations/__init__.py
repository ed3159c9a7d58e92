"""Doors: a framework's call, translated into the engine's words and back.

A new framework is a folder here, with a door class, and the class's name in `Doors`. Another package
can publish one of its own under the entry point `behest_integrations.doors`; see
`.github/CONTRIBUTING.md`. No door imports another.
"""

from __future__ import annotations

from .agent_framework import AgentFrameworkDoor
from .agno import AgnoDoor
from .anthropic import AnthropicDoor
from .bedrock import BedrockDoor
from .crewai import CrewAIDoor
from .dspy import DSPyDoor
from .google_adk import GoogleADKDoor
from .google_genai import GoogleGenAIDoor
from .http import HTTPDoor
from .langchain import LangChainDoor
from .litellm import LiteLLMDoor
from .llama_index import LlamaIndexDoor
from .openai import OpenAIDoor
from .openai_agents import OpenAIAgentsDoor
from .pydantic_ai import PydanticAIDoor
from .strands import StrandsDoor


class Doors(
    OpenAIDoor,
    AnthropicDoor,
    BedrockDoor,
    GoogleGenAIDoor,
    HTTPDoor,
    LangChainDoor,
    LlamaIndexDoor,
    PydanticAIDoor,
    OpenAIAgentsDoor,
    LiteLLMDoor,
    DSPyDoor,
    GoogleADKDoor,
    AgentFrameworkDoor,
    AgnoDoor,
    CrewAIDoor,
    StrandsDoor,
):
    """Every framework that a meter can be put into."""
