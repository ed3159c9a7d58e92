"""Models that frameworks bring for people's tests and tutorials: they ask nobody, and cost nothing.

By their classes' full names, and not those of subclasses, which may ask whom they like. What somebody gives
such a model as its price counts all the same, so that budgets can be tried on them.
"""

from __future__ import annotations

from ...prices import ASKS_NOBODY

# langchain-core 1.8, llama-index-core 0.14, pydantic-ai 2.68, openai-agents 0.24.
_STAND_INS: dict[str, tuple[str, ...]] = {
    "langchain_core.language_models.fake": ("FakeListLLM", "FakeStreamingListLLM"),
    "langchain_core.language_models.fake_chat_models": (
        "FakeChatModel", "FakeListChatModel", "FakeMessagesListChatModel", "GenericFakeChatModel",
        "ParrotFakeChatModel",
    ),
    "langchain_core.embeddings.fake": ("FakeEmbeddings", "DeterministicFakeEmbedding"),
    "langchain_community.llms.fake": ("FakeListLLM", "FakeStreamingListLLM"),
    "langchain_community.chat_models.fake": ("FakeListChatModel", "FakeMessagesListChatModel"),
    "langchain_community.embeddings.fake": ("FakeEmbeddings", "DeterministicFakeEmbedding"),
    "llama_index.core.llms.mock": (
        "MockLLM", "MockLLMWithNonyieldingChatStream", "MockLLMWithChatMemoryOfLastCall",
        "MockFunctionCallingLLM", "MockFunctionCallingLLMWithChatMemoryOfLastCall",
    ),
    "llama_index.core.embeddings.mock_embed_model": ("MockEmbedding", "MockMultiModalEmbedding"),
    "pydantic_ai.models.test": ("TestModel",),
    "pydantic_ai.embeddings.test": ("TestEmbeddingModel",),
    "agents.testing.model": ("ScriptedModel",),
}  # fmt: skip
_NAMES = frozenset(f"{module}.{name}" for module, names in _STAND_INS.items() for name in names)


def stands_in(cls: type) -> str | None:
    """The provider whose prices apply to a model's class, where it asks nobody; else None.

    A class of ours that meters another has that one's name.
    """
    return named(full_name(cls))


def full_name(cls: type) -> str:
    """The name of a class with its module's."""
    return f"{cls.__module__}.{cls.__qualname__}"


def named(name: str) -> str | None:
    """As `stands_in`, by a class's full name."""
    return ASKS_NOBODY if name in _NAMES else None
