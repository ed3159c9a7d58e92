"""The OpenAPI document is valid, and the gateway does what it says, whatever it is sent."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from gateway_support import Gateway

from behest_integrations.gateway.openapi import document
from behest_integrations.sandbox import Sandbox

schemathesis = pytest.importorskip("schemathesis")

from hypothesis import HealthCheck, Phase, settings  # noqa: E402
from openapi_spec_validator import OpenAPIV31SpecValidator  # noqa: E402
from schemathesis.checks import negative_data_rejection, positive_data_acceptance  # noqa: E402


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    folder: Path = tmp_path_factory.mktemp("contract")
    # No budget in dollars: models of any name are let through to the provider.
    with (
        Sandbox() as sandbox,
        Gateway(
            folder,
            sandbox,
            budgets=["100M calls/day per user", "1000 calls/day per session"],
            provider='retries = 0\napis = ["openai", "anthropic"]',
            env={"BEHEST_BYOK_KEY": "11" * 32},
        ) as running,
    ):
        yield running


@pytest.fixture(scope="module")
def key(gateway: Gateway) -> str:
    return gateway.key()


def test_the_document_is_openapi_3_1() -> None:
    found = document()
    assert found["openapi"].startswith("3.1")
    OpenAPIV31SpecValidator(found).validate()
    operations = [o for path in found["paths"].values() for o in path.values()]
    assert len({o["operationId"] for o in operations}) == len(operations) == 46
    assert all(o["summary"] and o["responses"] for o in operations)


def test_it_is_what_is_served(gateway: Gateway) -> None:
    import httpx

    assert httpx.get(f"{gateway.url}/openapi.json").json() == document()


schema = schemathesis.openapi.from_dict(document())
few = settings(
    max_examples=6,
    deadline=None,
    derandomize=True,
    phases=[Phase.explicit, Phase.generate],
    suppress_health_check=list(HealthCheck),
)
many = settings(
    few,
    max_examples=int(os.environ.get("BEHEST_EXAMPLES", "50")),
    derandomize="BEHEST_EXAMPLES" not in os.environ,
)


@schema.parametrize()
@few
def test_no_answer_that_the_document_does_not_know(case: object, gateway: Gateway, key: str) -> None:
    """No 5xx, no undeclared status, type or shape; what is wrong is refused, what is right is not."""
    assert_known(case, gateway, key)


@pytest.mark.slow
@schema.parametrize()
@many
def test_nor_of_many_more(case: object, gateway: Gateway, key: str) -> None:
    assert_known(case, gateway, key)


def assert_known(case: object, gateway: Gateway, key: str) -> None:
    # A request may be of the right shape and still be refused: its model has no price, it names
    # another's response, its window ends before it begins.
    without = [positive_data_acceptance]
    if case.method == "GET":  # type: ignore[attr-defined]
        # A wrong parameter whose value is an empty list is no parameter once it is in the address.
        # test_gateway.py has wrong ones that are.
        without.append(negative_data_rejection)
    case.call_and_validate(  # type: ignore[attr-defined]
        base_url=gateway.url, headers={"Authorization": f"Bearer {key}"}, excluded_checks=without
    )
