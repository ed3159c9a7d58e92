"""What goes over the wire, as far as the gateway looks at it: the rest passes through untouched.

Requests are checked against these and then sent on as they came. The same models make the
OpenAPI document.
"""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, RootModel

from ..rules.attribution import MAX_ID

Id = Annotated[str, Field(min_length=1, max_length=MAX_ID)]
Positive = Annotated[int, Field(ge=1, le=2**31)]
Text = Annotated[str, Field(min_length=1)]


class Request(BaseModel):
    """A request: what is not named here goes to the provider as it is."""

    model_config = ConfigDict(extra="allow", strict=True, protected_namespaces=())

    model: Id


class Message(BaseModel):
    model_config = ConfigDict(extra="allow", strict=True)

    role: Text
    content: str | list[dict[str, Any]] | None = None


class StreamOptions(BaseModel):
    model_config = ConfigDict(extra="allow", strict=True)

    include_usage: bool | None = None


class ChatCompletionRequest(Request):
    """https://platform.openai.com/docs/api-reference/chat/create"""

    messages: list[Message] = Field(min_length=1)
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    max_completion_tokens: Positive | None = None
    max_tokens: Positive | None = None
    n: Annotated[int, Field(ge=1, le=128)] | None = None
    tools: list[dict[str, Any]] | None = None
    response_format: dict[str, Any] | None = None
    modalities: list[str] | None = None
    service_tier: str | None = None


class CompletionRequest(Request):
    """https://platform.openai.com/docs/api-reference/completions/create"""

    prompt: str | list[str] | list[int] | list[list[int]]
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    max_tokens: Positive | None = None
    n: Annotated[int, Field(ge=1, le=128)] | None = None
    best_of: Annotated[int, Field(ge=1, le=20)] | None = None
    echo: bool | None = None


class ResponseRequest(Request):
    """https://platform.openai.com/docs/api-reference/responses/create"""

    input: str | list[dict[str, Any]]
    instructions: str | None = None
    stream: bool | None = None
    max_output_tokens: Positive | None = None
    previous_response_id: str | None = None
    tools: list[dict[str, Any]] | None = None
    text: dict[str, Any] | None = None
    service_tier: str | None = None


class EmbeddingRequest(Request):
    """https://platform.openai.com/docs/api-reference/embeddings/create"""

    input: Text | Annotated[list[Text] | list[int] | list[list[int]], Field(min_length=1)]
    encoding_format: Literal["float", "base64"] | None = None
    dimensions: Annotated[int, Field(ge=1, le=100_000)] | None = None


class MessagesRequest(Request):
    """https://platform.claude.com/docs/en/api/messages"""

    messages: list[Message] = Field(min_length=1)
    max_tokens: Annotated[int, Field(ge=0, le=2**31)] | None = None
    system: str | list[dict[str, Any]] | None = None
    tools: list[dict[str, Any]] | None = None
    thinking: dict[str, Any] | None = None
    metadata: dict[str, Any] | None = None
    stream: bool | None = None


class _Reply(BaseModel):
    """A provider's answer, as it came."""

    model_config = ConfigDict(extra="allow")


class ChatCompletion(_Reply):
    """https://platform.openai.com/docs/api-reference/chat/object"""

    id: str
    object: str
    created: int
    model: str
    choices: list[dict[str, Any]]
    usage: dict[str, Any] | None = None


class Completion(ChatCompletion):
    """https://platform.openai.com/docs/api-reference/completions/object"""


class Response(_Reply):
    """https://platform.openai.com/docs/api-reference/responses/object"""

    id: str
    object: str
    model: str
    output: list[dict[str, Any]]
    usage: dict[str, Any] | None = None


class Embeddings(_Reply):
    """https://platform.openai.com/docs/api-reference/embeddings/object"""

    object: str
    model: str
    data: list[dict[str, Any]]
    usage: dict[str, Any] | None = None


class MessageReply(_Reply):
    """https://platform.claude.com/docs/en/api/messages"""

    id: str
    type: str
    role: str
    model: str
    content: list[dict[str, Any]]
    usage: dict[str, Any] | None = None


class TokenCount(_Reply):
    """https://platform.claude.com/docs/en/api/messages-count-tokens"""

    input_tokens: int


class MessagesErrorBody(BaseModel):
    type: str
    message: str
    code: str
    details: dict[str, Any]


class MessagesError(BaseModel):
    """An error as Anthropic's clients read it: https://platform.claude.com/docs/en/api/errors"""

    type: Literal["error"]
    error: MessagesErrorBody
    request_id: str


class Model(BaseModel):
    id: str
    object: Literal["model"] = "model"
    created: int = 0
    owned_by: str


class ModelList(BaseModel):
    object: Literal["list"] = "list"
    data: list[Model]


class MintRequest(BaseModel):
    """For whom a token is to be, and for how long (`ttl`, seconds). A tier has a name, or its number."""

    model_config = ConfigDict(extra="forbid", strict=True)

    user_id: Id
    role: Id = "user"
    ttl: Positive = 3600
    tier: Id | Annotated[int, Field(ge=0, le=1_000_000)] | None = None
    session_id: Id | None = None


class MintedToken(BaseModel):
    """`access_token`, `jwt` and `token` are the same: Behest's clients read the one or the other.
    `ttl` and `expires_in`: seconds. `expires_at`: ISO 8601, UTC."""

    access_token: str
    jwt: str
    token: str
    token_type: Literal["Bearer"] = "Bearer"
    project_id: str
    session_id: str
    ttl: int
    expires_in: int
    expires_at: datetime


class PublishedKey(BaseModel):
    """https://www.rfc-editor.org/rfc/rfc7517"""

    kty: Literal["RSA"]
    kid: str
    use: Literal["sig"]
    alg: Literal["RS256"]
    n: str
    e: str


class PublishedKeys(BaseModel):
    """None, where tokens are signed with a secret."""

    keys: list[PublishedKey]


class TimeWindow(BaseModel):
    """From (included) and to (not included)."""

    start: datetime = Field(alias="from")
    end: datetime = Field(alias="to")


class UsageSums(BaseModel):
    """`cost_usd` is exact to the nano-dollar; `estimated_usd` and `assumed_usd` are the parts of it that
    are not the provider's own word."""

    requests: int = 0
    input_tokens: int = 0
    output_tokens: int = 0
    cost_usd: float = 0
    estimated_usd: float = 0
    assumed_usd: float = 0


class UsagePeriod(UsageSums):
    """`period` as the granularity says: `2026-11-25T04:00+0000`, `2026-11-25` or `2026-11`."""

    period: str


class Usage(BaseModel):
    project_id: str | None
    user_id: str | None
    window: TimeWindow
    granularity: Literal["hour", "day", "month"]
    total: UsageSums
    data: list[UsagePeriod]


class Thread(BaseModel):
    """A session, as far as the ledger knows it. Times are ISO 8601, UTC."""

    id: str
    object: Literal["thread"] = "thread"
    user_id: str | None
    created_at: datetime
    last_active_at: datetime
    requests: int
    input_tokens: int
    output_tokens: int
    cost_usd: float
    messages_kept: Literal[False] = False


class Threads(RootModel[list[Thread]]):
    """The latest first."""


class ThreadMessage(BaseModel):
    """The one message that there is: that messages are not kept."""

    id: str
    object: Literal["thread.message"] = "thread.message"
    thread_id: str
    role: Literal["system"] = "system"
    content: str
    created_at: datetime


class ThreadMessages(RootModel[list[ThreadMessage]]):
    """A list of that one."""


class ModelCost(BaseModel):
    model: str
    requests: int
    cost_usd: float


class BillingSums(BaseModel):
    requests: int = 0
    input_tokens: int = 0
    output_tokens: int = 0
    cost_usd: float = 0
    by_model: list[ModelCost] = Field(default_factory=list)


class BillingUsage(BaseModel):
    """`byok` is what was called with the tenant's own keys at providers: at the same prices, and paid to
    the provider by the tenant. `platform` is all other."""

    project_id: str | None
    window: TimeWindow
    platform: BillingSums
    byok: BillingSums


class Index(BaseModel):
    """Where things are: paths of this gateway."""

    name: str
    version: str
    base_url: str
    docs: str
    openapi: str
    health: str
    ready: str
    keys: str


class Health(BaseModel):
    status: str


class ErrorBody(BaseModel):
    """What was wrong: `code` is for programs, `message` for people, `details` has the numbers."""

    message: str
    type: str
    code: str
    param: str | None = None
    details: dict[str, Any]


class Error(BaseModel):
    error: ErrorBody
