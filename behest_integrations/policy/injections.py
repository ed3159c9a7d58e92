"""How prompts are known to be turned against a model's orders, as data: patterns over plain text.

They are of kinds that are published (https://genai.owasp.org/llmrisk/llm01-prompt-injection/): orders to forget
the orders, to show them, to play somebody without any; roles that a text gives itself. Each is narrow, so that
people who talk about prompts are let talk. They find what is known: no more is claimed.
"""

# ruff: noqa: E501
from __future__ import annotations

_ORDERS = r"(?:instructions?|prompts?|rules|directions|guidelines|orders|directives)"
_BEFORE = r"(?:previous|prior|above|earlier|preceding|foregoing|initial|original|system)"

INJECTIONS: tuple[str, ...] = (
    # to forget the orders
    rf"\b(?:ignore|disregard|forget|override|bypass)\b(?:\s+\w+){{0,3}}?\s+(?:{_BEFORE}\s+){{1,2}}{_ORDERS}",
    rf"\b(?:ignore|disregard|forget)\s+(?:all\s+)?(?:of\s+)?(?:your|the|these|any)\s+{_ORDERS}",
    r"\b(?:ignore|forget|disregard)\s+(?:everything|all)\s+(?:that\s+)?(?:you\s+(?:were|have been)|i|was)\s+(?:told|said|above)",
    r"\bignor(?:iere|ieren sie)\b.{0,30}\b(?:vorherigen?|bisherigen?|obigen?)\b.{0,20}\b(?:anweisungen|befehle|regeln)",
    r"\b(?:vergiss|vergessen sie)\b.{0,20}\b(?:alle|deine|ihre|die)\b.{0,20}\b(?:anweisungen|regeln)",
    r"\b(?:ignore[zr]?|oublie[zr]?)\b.{0,30}\b(?:instructions|consignes|règles)\b.{0,20}\b(?:précédentes|antérieures|ci-dessus)",
    r"\b(?:ignora|olvida|ignore|olvide)\b.{0,30}\b(?:instrucciones|reglas)\b.{0,20}\b(?:anteriores|previas)",
    r"(?:忽略|无视|忘记).{0,8}(?:之前|以上|先前|所有).{0,6}(?:指令|指示|提示|规则)",
    r"(?:игнорируй|забудь)\w*\b.{0,30}(?:предыдущие|все|прежние).{0,20}(?:инструкции|указания|правила)",
    # to show them
    r"\b(?:reveal|show|print|repeat|output|tell me|what (?:is|are)|give me)\b.{0,20}\byour\b.{0,15}\b(?:system|hidden|initial|original|secret)\s+(?:prompt|instructions?|message)",
    r"\brepeat\b.{0,20}\b(?:the )?(?:text|words|everything)\b.{0,10}\babove\b.{0,30}\b(?:starting|beginning|verbatim)",
    # to play somebody without any
    r"\byou are (?:now )?(?:dan\b|do anything now|in developer mode|jailbroken|an? (?:unrestricted|unfiltered|uncensored) )",
    r"\b(?:enable|enter|activate|switch to) (?:developer|dan|god|jailbreak|debug) mode\b",
    r"\b(?:pretend|act as if|imagine) (?:that )?you (?:have no|are not bound by|are free (?:from|of)|do not have any)\b.{0,20}(?:rules|restrictions|guidelines|limits|filters)",
    r"\bwithout (?:any )?(?:ethical|moral|safety) (?:guidelines|restrictions|constraints|filters)\b.{0,40}\b(?:answer|respond|reply)",
    # roles that a text gives itself
    r"<\|(?:im_start|start_header_id|start)\|>\s*(?:system|developer)",
    r"(?:^|\s)\[?(?:system|developer)\s*(?:message|prompt|override)\]?\s*:\s*(?:you|ignore|from now|new)",
    r"\[/?inst\].{0,10}<<sys>>",
    r"</?(?:system|system_prompt)>\s*(?:you|ignore|new|from now)",
)
