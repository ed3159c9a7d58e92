"""What servers take in a request, and what each field does to the bill: data.

Of OpenAI's wire, which most speak, of Anthropic's (`messages`), Gemini's (`generate_content`), Cohere's
(`chat_v2`) and Bedrock's (`converse`).

`fields` reads this. A dialect is what one server or provider understands. Its rows are lines
`EFFECT [ARGUMENT]: names`, by operation; a name with dots is a field within a field. What the
effects mean is in `EFFECTS`. A field that is not here is not known, and is refused under a budget.

Fields were taken from the providers' own typed clients or sources (the links), November 2026:
openai 2.54, anthropic 2.14, mistralai 3.7, groq 1.7, together 3.1, fireworks-ai 1.2,
cerebras-cloud-sdk 1.91, cohere 7.3, perplexityai 0.46, openrouter 1.3, xai-sdk 1.21.

Over 500 lines: it is data.
"""

from __future__ import annotations

from typing import NamedTuple

EFFECTS = {
    "nothing": "nothing",
    "request": "nothing by itself: it is the request, and is counted",
    "prompt": "adds input tokens: counted as text",
    "safety": "adds input tokens: a prompt of the provider's own",
    "limit": "limits the answer",
    "floor": "adds output tokens: the answer has at least so many",
    "thoughts": "nothing: thoughts count within the limit, and their budget is kept below it",
    "thoughts_more": "adds output tokens: thoughts on top of the limit",
    "answers": "asks for more answers",
    "echo": "adds output tokens: the prompt comes back",
    "echo_last": "adds output tokens: the end of the prompt comes back",
    "prediction": "adds output tokens: what is rejected of it",
    "fee": "adds a fee, or tokens that only the provider counts",
    # Anthropic bills each attempt: https://platform.claude.com/docs/en/build-with-claude/refusals-and-fallback
    "fee_here": "as a fee, in this dialect alone",
    "plugins": "adds a fee, by plugin",
    "search": "adds a fee unless its mode is off",
    "values": "by its value",
    "tier": "multiplies the price, by tier",
    "models": "changes the model: the dearest may answer",
    "stored": "adds input tokens: context that is stored at the provider",
    "modalities": "asks for answers that are not text",
    "audio": "asks for a spoken answer",
}
"""What a field does to the bill. `fee X` is allowed by `Meter(allow={"X": "$0.05"})`."""

VALUES: dict[str, dict[str, tuple[int, int]]] = {
    # What `optimized` costs is not in the price list:
    # https://docs.aws.amazon.com/bedrock/latest/userguide/latency-optimized-inference.html
    "latency": {"standard": (1, 1)},
    # Per model, see SPEEDS; this is the dearest:
    # https://platform.claude.com/docs/en/build-with-claude/fast-mode
    "speed": {"standard": (1, 1), "fast": (6, 1)},
    # https://platform.claude.com/docs/en/manage-claude/data-residency
    "geo": {"global": (1, 1), "us": (11, 10)},
    # What "pro" costs is not published: https://platform.openai.com/docs/guides/reasoning
    "mode": {"standard": (1, 1)},
}
"""Fields that multiply the price by their value; another value is not known."""

SPEEDS: tuple[tuple[str, tuple[int, int]], ...] = (
    ("*claude-opus-4*8*", (2, 1)),
    ("*claude-opus-5*", (2, 1)),  # $10 and $50 for 5, $8 and $40 for 5.5
)
"""What `speed: "fast"` costs where it is known to cost less than six times the price."""

TIERS: dict[str, tuple[str, tuple[int, int]]] = {
    "auto": ("auto", (1, 1)),
    "default": ("default", (1, 1)),
    "flex": ("flex", (1, 1)),
    "batch": ("batch", (1, 1)),
    "scale": ("scale", (1, 1)),
    "standard": ("default", (1, 1)),
    "unspecified": ("default", (1, 1)),
    "standard_only": ("default", (1, 1)),
    "on_demand": ("default", (1, 1)),
    "priority": ("priority", (1, 1)),
    # Two names of one tier: https://developers.openai.com/api/docs/guides/fast-mode
    "fast": ("priority", (1, 1)),
    # Six times the standard price: https://developers.openai.com/api/docs/guides/ultrafast-mode
    "ultrafast": ("default", (6, 1)),
}
"""Service tiers by the names that are sent: the price list's name, and a multiple of its price."""

DEAREST_TIER = (5, 2)
"""Most that `priority` costs over the standard price, where the price list has no price for it:
2.5 times for gpt-5.5, https://openai.com/api-fast-mode/"""

FREE_PLUGINS = frozenset({"response-healing", "context-compression"})
PLUGINS = {"web": "web_search", "web-fetch": "web_fetch", "file-parser": "file"}
"""OpenRouter's plugins, https://openrouter.ai/docs/guides/features/plugins: which are free, and
which are a feature that has a name already; another one is `plugin:ID`."""

SAFETY_PROMPT = 256
"""Most tokens of Mistral's `safe_prompt`, a paragraph, and of the prompt that `prompt_mode` puts before:
https://docs.mistral.ai/capabilities/guardrailing, https://docs.mistral.ai/capabilities/reasoning"""
"""Models that do more than they are asked: pattern, the feature that allows them ("" where a fee
for each request is known), the fee. The first that matches counts."""


class Dialect(NamedTuple):
    """What one server takes.

    Attributes:
        name: for people.
        providers: price list ids, and other names that a provider is known by.
        source: where its fields are listed.
        both: rows of chat and of completions.
        messages: rows of Anthropic's own API.
        generate_content, embed_content: rows of Gemini's, in camel case.
        chat_v2, embed_v2: rows of Cohere's own API.
        converse: rows of Bedrock's.
    """

    name: str
    providers: tuple[str, ...]
    source: str
    both: str = ""
    chat: str = ""
    completions: str = ""
    responses: str = ""
    embeddings: str = ""
    messages: str = ""
    generate_content: str = ""
    embed_content: str = ""
    chat_v2: str = ""
    embed_v2: str = ""
    converse: str = ""


# What nearly every server takes.
_BOTH = """
request: model
nothing: stream stream_options stop temperature top_p frequency_penalty presence_penalty seed user logprobs
"""
_CHAT = """
request: messages
prompt: tools functions response_format
nothing: tool_choice function_call parallel_tool_calls logit_bias top_logprobs reasoning_effort
"""
_COMPLETIONS = """
request: prompt
prompt: suffix
echo: echo
nothing: logit_bias
"""
_EMBEDDINGS = """
request: model input
nothing: dimensions encoding_format user
"""
_RESPONSES = """
request: model input instructions
prompt: tools text
limit: max_output_tokens
nothing: stream stream_options temperature top_p user tool_choice parallel_tool_calls top_logprobs
nothing: truncation store metadata include background max_tool_calls
nothing: reasoning.effort reasoning.summary reasoning.generate_summary reasoning.context
values mode: reasoning.mode
thoughts: reasoning.max_tokens
tier: service_tier
stored: previous_response_id conversation prompt
"""
_MEDIA = "nothing: media_io_kwargs mm_processor_kwargs"

DIALECTS: tuple[Dialect, ...] = (
    Dialect(
        "OpenAI",
        ("openai", "openai-decisions"),
        "https://platform.openai.com/docs/api-reference",
        both=_BOTH,
        chat=_CHAT
        + """
limit: max_completion_tokens max_tokens
answers: n
prediction: prediction
fee web_search: web_search_options
modalities: modalities
audio: audio
tier: service_tier
nothing: metadata store verbosity safety_identifier moderation
nothing: prompt_cache_key prompt_cache_options prompt_cache_retention
""",
        completions=_COMPLETIONS
        + """
limit: max_tokens
answers: n best_of
""",
        responses=_RESPONSES
        + """
fee compaction: context_management
fee image: image
fee access_programs: access_programs
fee multi_agent: multi_agent
nothing: background_options
nothing: safety_identifier moderation prompt_cache_key prompt_cache_options prompt_cache_retention
""",
        embeddings=_EMBEDDINGS,
    ),
    Dialect(
        "Azure OpenAI",
        ("azure",),
        "https://learn.microsoft.com/azure/ai-services/openai/reference",
        both=_BOTH,
        chat=_CHAT
        + """
limit: max_completion_tokens max_tokens
answers: n
prediction: prediction
modalities: modalities
audio: audio
tier: service_tier
fee data_sources: data_sources dataSources enhancements
nothing: user_security_context metadata store
""",
        completions=_COMPLETIONS + "limit: max_tokens\nanswers: n best_of",
        responses=_RESPONSES,
        embeddings=_EMBEDDINGS + "nothing: input_type",
    ),
    Dialect(
        "vLLM",
        ("vllm", "hosted_vllm"),
        "https://github.com/vllm-project/vllm/tree/main/vllm/entrypoints/openai",
        both=_BOTH
        + """
answers: n best_of
floor: min_tokens
thoughts: thinking_token_budget
prompt: response_format
fee prompt_embeds: prompt_embeds
nothing: use_beam_search top_k min_p repetition_penalty length_penalty stop_token_ids watermarking
nothing: include_stop_str_in_output ignore_eos skip_special_tokens spaces_between_special_tokens
nothing: truncate_prompt_tokens truncation_side prompt_logprobs logprob_token_ids allowed_token_ids bad_words
nothing: add_special_tokens structured_outputs priority request_id session_id cache_salt
nothing: return_tokens_as_token_ids return_token_ids routed_experts_prompt_start return_token_offsets
nothing: return_mm_kwargs return_prompt_text kv_transfer_params ec_transfer_params vllm_xargs
nothing: repetition_detection stream_interval logits_processors early_stopping
nothing: guided_json guided_regex guided_choice guided_grammar guided_decoding_backend
nothing: guided_whitespace_pattern structural_tag
""",
        chat=_CHAT
        + """
limit: max_completion_tokens max_tokens
prompt: documents chat_template chat_template_kwargs
nothing: include_reasoning echo add_generation_prompt continue_final_message
"""
        + _MEDIA,
        completions=_COMPLETIONS + "limit: max_tokens",
        responses=_RESPONSES
        + "nothing: request_id priority cache_salt enable_response_messages previous_input_messages\n"
        + _MEDIA,
        embeddings=_EMBEDDINGS
        + """
request: messages
prompt: chat_template chat_template_kwargs
nothing: truncate_prompt_tokens truncation_side add_special_tokens priority request_id normalize activation
nothing: use_activation embed_dtype endianness cache_salt add_generation_prompt continue_final_message
"""
        + _MEDIA,
    ),
    Dialect(
        "llama.cpp",
        ("llama.cpp", "llamacpp", "llama_cpp", "llamafile", "llama-server"),
        "https://github.com/ggml-org/llama.cpp/blob/master/tools/server/server-schema.cpp",
        both=_BOTH
        + """
limit: n_predict max_completion_tokens max_tokens
answers: n n_cmpl
thoughts: reasoning_budget_tokens thinking_budget_tokens
prompt: json_schema generation_prompt reasoning_budget_message
fee image: image_data
nothing: top_k min_p top_n_sigma xtc_probability xtc_threshold typical_p dynatemp_range dynatemp_exponent
nothing: repeat_last_n repeat_penalty penalize_nl dry_multiplier dry_base dry_allowed_length
nothing: dry_penalty_last_n dry_sequence_breakers mirostat mirostat_tau mirostat_eta adaptive_target
nothing: adaptive_decay n_probs min_keep backend_sampling post_sampling_probs samplers ignore_eos
nothing: grammar grammar_lazy grammar_type grammar_triggers preserved_tokens lora logit_bias
nothing: n_indent n_keep n_discard n_cache_reuse t_max_predict_ms t_max_prompt_ms
nothing: verbose timings_per_token cache_prompt return_tokens return_progress sse_ping_interval
nothing: response_fields id_slot chat_format reasoning_format parse_tool_calls parse_tool_calls chat_parser
nothing: reasoning_in_content thinking_forced_open reasoning_control continue_final_message
nothing: reasoning_budget_start_tag reasoning_budget_end_tag reasoning_budget_end_tags
nothing: speculative.n_max speculative.n_min speculative.p_min speculative.type
nothing: speculative.ngram_size_n speculative.ngram_size_m speculative.ngram_min_hits
""",
        chat=_CHAT
        + """
prompt: prompt chat_template_kwargs
echo: echo
nothing: add_generation_prompt enable_thinking
""",
        completions=_COMPLETIONS + "prompt: input_prefix input_suffix input_extra\nanswers: best_of",
        embeddings=_EMBEDDINGS + "request: content\nnothing: embd_normalize",
    ),
    Dialect(
        "Ollama",
        ("ollama", "ollama_chat"),
        "https://github.com/ollama/ollama/blob/main/openai/openai.go",
        both=_BOTH
        + """
limit: max_tokens options.num_predict
prompt: system template context format
fee image: images
nothing: keep_alive raw think truncate shift _debug_render_only
nothing: options.num_keep options.seed options.top_k options.top_p options.min_p options.typical_p
nothing: options.repeat_last_n options.temperature options.repeat_penalty options.presence_penalty
nothing: options.frequency_penalty options.stop options.num_ctx options.num_batch options.num_gpu
nothing: options.main_gpu options.use_mmap options.use_mlock options.num_thread options.draft_num_predict
nothing: options.mirostat options.mirostat_eta options.mirostat_tau options.tfs_z options.numa
nothing: options.low_vram options.vocab_only options.f16_kv options.penalize_newline options.logits_all
nothing: options.rope_frequency_base options.rope_frequency_scale options.embedding_only
""",
        chat=_CHAT + "nothing: reasoning.effort",
        completions=_COMPLETIONS,
        responses=_RESPONSES,
        embeddings=_EMBEDDINGS + "nothing: options keep_alive truncate",
    ),
    Dialect(
        "Text Generation Inference",
        ("tgi", "huggingface_tgi"),
        "https://github.com/huggingface/text-generation-inference/blob/main/router/src/lib.rs",
        both=_BOTH
        + """
limit: max_tokens max_new_tokens parameters.max_new_tokens
answers: n best_of parameters.best_of
echo: return_full_text parameters.return_full_text
nothing: repetition_penalty top_k typical_p do_sample truncate watermark details decoder_input_details
nothing: top_n_tokens grammar adapter_id
nothing: parameters.temperature parameters.repetition_penalty parameters.frequency_penalty
nothing: parameters.top_k parameters.top_p parameters.typical_p parameters.do_sample parameters.stop
nothing: parameters.truncate parameters.watermark parameters.details parameters.decoder_input_details
nothing: parameters.seed parameters.top_n_tokens parameters.grammar parameters.adapter_id
""",
        chat=_CHAT + "prompt: tool_prompt",
        completions=_COMPLETIONS,
        embeddings=_EMBEDDINGS + "request: inputs\nnothing: truncate truncation_direction normalize",
    ),
    Dialect(
        "SGLang",
        ("sglang",),
        "https://github.com/sgl-project/sglang/blob/main/python/sglang/srt/entrypoints/openai/protocol.py",
        both=_BOTH
        + """
answers: n best_of
floor: min_tokens min_new_tokens
limit: max_new_tokens
prompt: response_format
nothing: top_k min_p regex ebnf json_schema repetition_penalty stop_token_ids stop_regex no_stop_trim
nothing: ignore_eos skip_special_tokens lora_path session_id session_params custom_params
nothing: custom_logit_processor bootstrap_host bootstrap_port bootstrap_room routed_dp_rank
nothing: disagg_prefill_dp_rank data_parallel_rank rid extra_key cache_salt ngram_corpus_id priority
nothing: custom_labels return_hidden_states return_routed_experts routed_experts_start_len
nothing: return_cached_tokens_details return_prompt_token_ids return_token_ids return_meta_info
nothing: spaces_between_special_tokens
fee image: images_config
""",
        chat=_CHAT
        + """
limit: max_completion_tokens max_tokens
prompt: chat_template_kwargs input_ids task
nothing: continue_final_message separate_reasoning stream_reasoning
nothing: reasoning.effort reasoning.reasoning_effort reasoning.enabled reasoning.enable
fee image: max_dynamic_patch min_dynamic_patch
fee video: use_audio_in_video
""",
        completions=_COMPLETIONS + "limit: max_tokens",
        responses=_RESPONSES + "nothing: request_id priority",
        embeddings=_EMBEDDINGS + "nothing: rid priority lora_path",
    ),
    Dialect(
        "LM Studio",
        ("lmstudio", "lm_studio"),
        "https://lmstudio.ai/docs/developer/openai-compat",
        both=_BOTH
        + "limit: max_tokens max_completion_tokens\nnothing: ttl draft_model top_k min_p repeat_penalty",
        chat=_CHAT + "answers: n",
        completions=_COMPLETIONS + "answers: n best_of",
        responses=_RESPONSES + "nothing: ttl draft_model",
        embeddings=_EMBEDDINGS + "nothing: ttl",
    ),
    Dialect(
        "OpenRouter",
        ("openrouter",),
        "https://openrouter.ai/docs/api-reference/parameters",
        both=_BOTH
        + """
limit: max_tokens max_completion_tokens
models: models
nothing: route provider.allow_fallbacks provider.max_price
fee provider_routing: provider.order provider.only provider.ignore provider.sort provider.quantizations
fee provider_routing: provider.data_collection provider.zdr provider.require_parameters provider.options
fee provider_routing: provider.enforce_distillable_text
fee provider_routing: provider.preferred_min_throughput provider.preferred_max_latency
plugins: plugins
fee preset: preset
fee image_output: image_config
nothing: top_k top_a min_p repetition_penalty transforms include_reasoning usage session_id trace debug
nothing: cache_control metadata prompt_cache_key prompt_cache_options stop_server_tools_when verbosity
nothing: reasoning.effort reasoning.exclude reasoning.enabled reasoning.summary
thoughts: reasoning.max_tokens
tier: service_tier
prediction: prediction
modalities: modalities
""",
        chat=_CHAT
        + """
prompt: prompt deferred_tools
answers: n
fee web_search: web_search_options
""",
        completions=_COMPLETIONS + "prompt: messages\nanswers: n",
        responses=_RESPONSES
        + """
models: models
plugins: plugins
modalities: modalities
prompt: deferred_tools
fee image_output: image_config
fee provider_routing: provider
nothing: route session_id trace debug cache_control frequency_penalty presence_penalty stop top_k
nothing: stop_server_tools_when reasoning.enabled safety_identifier prompt_cache_key prompt_cache_options
""",
        embeddings=_EMBEDDINGS + "fee provider_routing: provider\nnothing: input_type",
    ),
    Dialect(
        "Mistral",
        ("mistral", "mistralai"),
        "https://docs.mistral.ai/api",
        both=_BOTH
        + """
limit: max_tokens
floor: min_tokens
safety: safe_prompt prompt_mode
fee guardrails: guardrails
nothing: random_seed metadata repetition_penalty top_k prompt_logprobs top_prompt_logprobs
nothing: prompt_cache_key
tier: service_tier
prediction: prediction
answers: n
""",
        chat=_CHAT + "nothing: reasoning_effort",
        completions=_COMPLETIONS,
        embeddings=_EMBEDDINGS + "request: inputs\nnothing: metadata output_dimension output_dtype",
    ),
    Dialect(
        "Groq",
        ("groq",),
        "https://console.groq.com/docs/api-reference",
        both=_BOTH,
        chat=_CHAT
        + """
limit: max_completion_tokens max_tokens
answers: n
prompt: documents
fee compound: compound_custom
fee web_search: search_settings include_domains exclude_domains
nothing: citation_options disable_tool_validation include_reasoning reasoning_format metadata store
tier: service_tier
""",
        responses=_RESPONSES,
        embeddings=_EMBEDDINGS,
    ),
    Dialect(
        "DeepSeek",
        ("deepseek",),
        "https://api-docs.deepseek.com/api/create-chat-completion",
        both=_BOTH + "limit: max_tokens",
        chat=_CHAT + "nothing: thinking.type thinking.reasoning_effort user_id",
        completions=_COMPLETIONS,
        responses=_RESPONSES,
    ),
    Dialect(
        "Together",
        ("together", "together_ai", "huggingface_together"),
        "https://docs.together.ai/reference/chat-completions-1",
        both=_BOTH
        + """
limit: max_tokens
answers: n
fee safety_model: safety_model
nothing: min_p top_k repetition_penalty compliance context_length_exceeded_behavior
""",
        chat=_CHAT
        + """
echo: echo
prompt: chat_template_kwargs
nothing: reasoning.enabled
""",
        completions=_COMPLETIONS,
        embeddings=_EMBEDDINGS,
    ),
    Dialect(
        "Fireworks",
        ("fireworks", "fireworks_ai", "huggingface_fireworks-ai"),
        "https://docs.fireworks.ai/api-reference/post-chatcompletions",
        both=_BOTH
        + """
limit: max_completion_tokens max_tokens
answers: n
echo: echo
echo_last: echo_last
prediction: prediction speculation
tier: service_tier
prompt: response_format
fee image: images
thoughts: thinking.budget_tokens
nothing: thinking.type reasoning_effort reasoning_history top_logprobs
nothing: context_length_exceeded_behavior ignore_eos metadata min_p mirostat_lr mirostat_target
nothing: perf_metrics_in_response prompt_cache_isolation_key prompt_cache_key prompt_cache_max_len
nothing: prompt_truncate_len raw_output repetition_penalty return_token_ids safe_tokenization top_k typical_p
""",
        chat=_CHAT,
        completions=_COMPLETIONS,
        responses=_RESPONSES,
        embeddings=_EMBEDDINGS + "prompt: prompt_template\nnothing: return_logits normalize",
    ),
    Dialect(
        "xAI",
        ("x-ai", "xai"),
        "https://docs.x.ai/docs/api-reference",
        both=_BOTH,
        chat=_CHAT
        + """
limit: max_completion_tokens max_tokens
answers: n
search: search_parameters
fee web_search: web_search_options
fee agents: agent_count
tier: service_tier
stored: previous_response_id
nothing: deferred store_messages use_encrypted_content max_turns include safety_identifier prompt_cache_key
""",
        completions=_COMPLETIONS + "limit: max_tokens\nanswers: n best_of",
        responses=_RESPONSES + "search: search_parameters\nfee agents: agent_count\nnothing: max_turns",
    ),
    Dialect(
        "Gemini",
        ("google", "google-vertex", "vertex_ai", "gemini"),
        "https://ai.google.dev/gemini-api/docs/openai",
        both=_BOTH,
        # Google's own page says that thoughts are billed beside the limit; where it was measured
        # they were within it (https://github.com/googleapis/python-genai/issues/2062).
        chat=_CHAT
        + """
limit: max_completion_tokens max_tokens
limit: generation_config.max_output_tokens generationConfig.maxOutputTokens
answers: n generation_config.candidate_count generationConfig.candidateCount
thoughts_more: extra_body.google.thinking_config.thinking_budget google.thinking_config.thinking_budget
thoughts_more: generation_config.thinking_config.thinking_budget
thoughts_more: generationConfig.thinkingConfig.thinkingBudget
nothing: extra_body.google.thinking_config.thinking_level google.thinking_config.thinking_level
nothing: extra_body.google.thinking_config.include_thoughts google.thinking_config.include_thoughts
nothing: extra_body.google.safety_settings google.safety_settings
nothing: extra_body.google.thought_tag_marker google.thought_tag_marker
nothing: generation_config.thinking_config.include_thoughts generation_config.thinking_config.thinking_level
nothing: generation_config.temperature generation_config.top_p generation_config.top_k
nothing: generation_config.seed generation_config.stop_sequences
nothing: generationConfig.temperature generationConfig.topP generationConfig.topK generationConfig.seed
nothing: generationConfig.stopSequences generationConfig.thinkingConfig.includeThoughts
nothing: generationConfig.thinkingConfig.thinkingLevel
stored: extra_body.google.cached_content google.cached_content
modalities: modalities
tier: service_tier
""",
        embeddings=_EMBEDDINGS,
        # https://ai.google.dev/api/generate-content, and what Vertex has:
        # https://cloud.google.com/vertex-ai/generative-ai/docs/model-reference/inference.
        # Which model a router takes is its own choice.
        generate_content="""
request: model contents
prompt: systemInstruction tools
limit: generationConfig.maxOutputTokens
answers: generationConfig.candidateCount
thoughts_more: generationConfig.thinkingConfig.thinkingBudget
nothing: generationConfig.thinkingConfig.thinkingLevel generationConfig.thinkingConfig.includeThoughts
nothing: generationConfig.temperature generationConfig.topP generationConfig.topK generationConfig.seed
nothing: generationConfig.stopSequences generationConfig.presencePenalty generationConfig.frequencyPenalty
nothing: generationConfig.responseMimeType generationConfig.responseLogprobs generationConfig.logprobs
nothing: generationConfig.mediaResolution generationConfig.audioTimestamp generationConfig.speechConfig
nothing: generationConfig.enableEnhancedCivicAnswers generationConfig.enableAffectiveDialog
prompt: generationConfig.responseSchema generationConfig.responseJsonSchema generationConfig.responseFormat
prompt: generationConfig.translationConfig
modalities: generationConfig.responseModalities
fee image_output: generationConfig.imageConfig
fee routing: generationConfig.routingConfig generationConfig.modelConfig generationConfig.modelSelectionConfig
fee audio_transcription: generationConfig.audioTranscriptionConfig
stored: cachedContent
tier: serviceTier
fee model_armor: modelArmorConfig
nothing: stream safetySettings labels store
nothing: toolConfig.functionCallingConfig toolConfig.retrievalConfig
nothing: toolConfig.includeServerSideToolInvocations
""",
        embed_content="""
request: model content
prompt: title
nothing: stream taskType outputDimensionality autoTruncate
nothing: config.taskType config.outputDimensionality config.autoTruncate
""",
    ),
    Dialect(
        "Anthropic",
        ("anthropic",),
        "https://platform.claude.com/docs/en/api/openai-sdk",
        both=_BOTH,
        chat=_CHAT
        + """
limit: max_tokens max_completion_tokens
answers: n
thoughts: thinking.budget_tokens
nothing: thinking.type thinking.display top_k stop_sequences metadata cache_control betas
nothing: prediction modalities audio store diagnostics user_profile_id workspace_id
prompt: system output_config
values speed: speed
values geo: inference_geo
tier: service_tier
fee_here fallbacks: fallbacks
fee mcp: mcp_servers
fee code_execution: container
fee compaction: compaction context_management
stored: thread
""",
        # https://platform.claude.com/docs/en/api/messages, and its beta; with what Bedrock and Vertex have
        # in the body, which is headers elsewhere. `max_tokens` may be 0. Its context is edited before it is
        # read: `anthropic` looks at how.
        messages="""
request: model messages
prompt: tools system output_config output_format
limit: max_tokens
thoughts: thinking.budget_tokens
nothing: stream temperature top_p top_k stop_sequences metadata tool_choice
nothing: thinking.type thinking.display cache_control diagnostics user_profile_id workspace_id betas
nothing: anthropic_version anthropic_beta fallback_credit_token billing_policy.type billing_policy.bill_to
values speed: speed
values geo: inference_geo
tier: service_tier
fee fallbacks: fallbacks
fee mcp: mcp_servers
fee code_execution: container
fee compaction: compaction context_management
stored: thread
""",
    ),
    Dialect(
        "Perplexity",
        ("perplexity",),
        "https://docs.perplexity.ai/api-reference/chat-completions-post",
        both=_BOTH,
        chat=_CHAT
        + """
limit: max_tokens
answers: n best_of
nothing: web_search_options.search_context_size web_search_options.user_location
nothing: web_search_options.image_results_enhanced_relevance
fee pro_search: web_search_options.search_type
nothing: disable_search enable_search_classifier search_mode search_domain_filter search_recency_filter
nothing: search_after_date_filter search_before_date_filter last_updated_after_filter
nothing: last_updated_before_filter search_language_filter return_images return_related_questions
nothing: image_domain_filter image_format_filter num_images num_search_results language_preference country
nothing: latitude longitude safe_search top_k cum_logprobs diverse_first_token response_formatting_locale
nothing: stream_mode response_metadata has_image_url updated_after_timestamp updated_before_timestamp
stored: thread_id use_threads
""",
        responses=_RESPONSES
        + """
models: models
fee preset: preset
prompt: response_format skills
nothing: max_steps language_preference
""",
    ),
    Dialect(
        "Cohere",
        ("cohere",),
        "https://docs.cohere.com/docs/compatibility-api",
        both=_BOTH + "limit: max_tokens\nnothing: k p safety_mode raw_prompting priority",
        chat=_CHAT
        + """
prompt: documents
nothing: citation_options strict_tools
nothing: thinking.type
thoughts: thinking.token_budget
""",
        embeddings=_EMBEDDINGS + "nothing: input_type embedding_types truncate output_dimension",
        # https://docs.cohere.com/reference/chat, https://docs.cohere.com/reference/embed
        chat_v2="""
request: model messages
prompt: tools documents response_format
limit: max_tokens
thoughts: thinking.token_budget
nothing: thinking.type stream strict_tools citation_options safety_mode stop_sequences temperature seed
nothing: frequency_penalty presence_penalty k p logprobs tool_choice priority
""",
        embed_v2="""
request: model texts inputs
fee image: images
nothing: input_type max_tokens output_dimension embedding_types truncate priority
""",
    ),
    Dialect(
        "Cerebras",
        ("cerebras", "huggingface_cerebras"),
        "https://inference-docs.cerebras.ai/api-reference/chat-completions",
        both=_BOTH
        + """
limit: max_completion_tokens max_tokens
floor: min_tokens min_completion_tokens
answers: n best_of
tier: service_tier
prediction: prediction
nothing: reasoning_format disable_reasoning clear_thinking prompt_cache_key grammar_root return_raw_tokens
""",
        chat=_CHAT,
        completions=_COMPLETIONS,
    ),
    Dialect(
        "Moonshot",
        ("moonshotai", "moonshot"),
        "https://platform.moonshot.ai/docs/api/chat",
        both=_BOTH,
        chat=_CHAT
        + """
limit: max_tokens max_completion_tokens
answers: n
nothing: thinking.type thinking.keep prompt_cache_key safety_identifier
""",
    ),
    Dialect(
        "Qwen (Model Studio)",
        ("dashscope", "qwen", "alibaba"),
        "https://www.alibabacloud.com/help/en/model-studio/qwen-api-via-openai-chat-completions",
        both=_BOTH,
        chat=_CHAT
        + """
limit: max_tokens max_completion_tokens
answers: n
thoughts_more: thinking_budget
fee web_search: enable_search search_options
fee code_execution: enable_code_interpreter
fee image: vl_high_resolution_images
prompt: translation_options
modalities: modalities
audio: audio
nothing: enable_thinking preserve_thinking top_k repetition_penalty incremental_output result_format
nothing: skill asr_options
""",
        embeddings=_EMBEDDINGS,
    ),
    Dialect(
        "NVIDIA NIM",
        ("nvidia", "nvidia_nim"),
        "https://docs.nvidia.com/nim/large-language-models/latest/api-reference.html",
        both=_BOTH
        + """
limit: max_tokens max_completion_tokens
answers: n
floor: min_tokens
thoughts: nvext.max_thinking_tokens
nothing: nvext.guided_json nvext.guided_regex nvext.guided_choice nvext.guided_grammar nvext.ignore_eos
nothing: nvext.repetition_penalty nvext.top_k
""",
        chat=_CHAT + "prompt: chat_template_kwargs",
        completions=_COMPLETIONS,
        embeddings=_EMBEDDINGS + "nothing: input_type truncate modality",
    ),
    Dialect(
        "TensorRT-LLM",
        ("tensorrt_llm", "trtllm"),
        "https://nvidia.github.io/TensorRT-LLM/commands/trtllm-serve/trtllm-serve.html",
        both=_BOTH
        + """
limit: max_tokens max_completion_tokens
answers: n best_of beam_width num_beams
floor: min_tokens
nothing: use_beam_search top_k top_p_min top_p_reset_ids top_p_decay min_p repetition_penalty length_penalty
nothing: early_stopping stop_token_ids include_stop_str_in_output ignore_eos skip_special_tokens
nothing: spaces_between_special_tokens truncate_prompt_tokens return_context_logits detokenize lora_request
nothing: disaggregated_params add_special_tokens prompt_ignore_length
""",
        chat=_CHAT + "prompt: documents chat_template chat_template_kwargs",
        completions=_COMPLETIONS,
    ),
    Dialect(
        "LiteLLM proxy",
        ("litellm", "litellm_proxy"),
        "https://docs.litellm.ai/docs/completion/input",
        both=_BOTH
        + """
limit: max_tokens max_completion_tokens
answers: n best_of
models: fallbacks context_window_fallbacks content_policy_fallbacks context_window_fallback_dict
fee retries: num_retries max_retries
fee guardrails: guardrails
fee user_config: user_config model_list
fee file_search: vector_store_ids
stored: prompt_id prompt_label prompt_version prompt_variables
thoughts: thinking.budget_tokens
nothing: thinking.type metadata litellm_metadata tags cache caching ttl s-maxage no-log no-cache no-store
nothing: mock_response mock_testing_fallbacks mock_delay mock_timeout disable_fallbacks drop_params
nothing: allowed_openai_params additional_drop_params timeout request_timeout stream_timeout
nothing: litellm_trace_id litellm_session_id litellm_call_id merge_reasoning_content_in_choices
nothing: enable_json_schema_validation input_cost_per_token output_cost_per_token verbosity
tier: service_tier
fee web_search: web_search_options
prediction: prediction
""",
        chat=_CHAT + "modalities: modalities\naudio: audio",
        completions=_COMPLETIONS,
        responses=_RESPONSES
        + """
models: fallbacks
fee retries: num_retries max_retries
nothing: litellm_metadata tags cache timeout litellm_trace_id litellm_session_id
""",
        embeddings=_EMBEDDINGS
        + "models: fallbacks\nnothing: metadata litellm_metadata tags cache timeout input_type",
    ),
    Dialect(
        "Behest",
        ("behest",),
        "https://pypi.org/project/behest-ai/",
        both=_BOTH,
        chat=_CHAT
        + """
limit: max_completion_tokens max_tokens
answers: n
nothing: session_id user_id metadata
tier: service_tier
""",
    ),
    Dialect(
        "Bedrock Converse",
        ("aws", "bedrock", "bedrock_converse", "amazon_bedrock"),
        "https://docs.aws.amazon.com/bedrock/latest/APIReference/API_runtime_Converse.html",
        # `additionalModelRequestFields` are the model's own; those of Claude, Nova and gpt-oss are here:
        # https://docs.aws.amazon.com/bedrock/latest/userguide/model-parameters.html
        converse="""
request: model messages system
prompt: toolConfig.tools outputConfig.textFormat
limit: inferenceConfig.maxTokens
nothing: stream inferenceConfig.temperature inferenceConfig.topP inferenceConfig.stopSequences
nothing: toolConfig.toolChoice outputConfig.effort
nothing: additionalModelResponseFieldPaths requestMetadata projectIdentifier
fee guardrails: guardrailConfig
stored: promptVariables
values latency: performanceConfig.latency
tier: serviceTier.type
thoughts: additionalModelRequestFields.thinking.budget_tokens
thoughts: additionalModelRequestFields.reasoning_config.budget_tokens
nothing: additionalModelRequestFields.thinking.type additionalModelRequestFields.thinking.display
nothing: additionalModelRequestFields.reasoning_config.type additionalModelRequestFields.reasoning_effort
nothing: additionalModelRequestFields.top_k additionalModelRequestFields.inferenceConfig.topK
nothing: additionalModelRequestFields.anthropic_beta
""",
    ),
    Dialect(
        "Frameworks' own names",
        (),
        "https://docs.langchain.com/oss/python/integrations/chat",
        # Model classes name settings as their own API does, and send them under other names.
        both="""
limit: num_predict max_new_tokens max_output_tokens maxOutputTokens max_tokens_to_sample
answers: num_return_sequences candidate_count
thoughts: thinking_token_budget
thoughts_more: thinking_budget
nothing: thinking_level include_thoughts num_ctx mirostat mirostat_eta mirostat_tau num_gpu num_thread
nothing: repeat_last_n repeat_penalty tfs_z num_keep stop_sequences typical_p
""",
    ),
)
