"""What tokens cost: the price list compiled into exact integers, and whose prices they are."""

from .hosts import ModelHost, model_host, named_hosts
from .pricing import ASKS_NOBODY, Pricing, ReplyPricing
from .providers import multiplier_for_url, provider_for_url, provider_named
from .rates import FEMTO_PER_NANO, ModelPricing, Price
from .terms import Terms

__all__ = [
    "ASKS_NOBODY",
    "FEMTO_PER_NANO",
    "ModelHost",
    "ModelPricing",
    "Price",
    "Pricing",
    "ReplyPricing",
    "Terms",
    "model_host",
    "multiplier_for_url",
    "named_hosts",
    "provider_for_url",
    "provider_named",
]
