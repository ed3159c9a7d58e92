"""`/admin/v1`: the gateway, changed while it runs, by who has an admin key. Each change is in the audit."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import anyio.to_thread
from starlette.requests import Request
from starlette.responses import Response

from ..ledger import Ledger
from ..ledger.keys import SealedKey
from ..rules.errors import ConfigError
from .admin_shapes import (
    AdminKey,
    AdminKeys,
    ExpireRequest,
    KeyRequest,
    NewKey,
    OwnKey,
    OwnKeyRequest,
    OwnKeys,
    RotateRequest,
)
from .bodies import Bodies, M, parse
from .byok import Masters, ProviderKeys
from .callers import Gate
from .keys import PREFIX, Key, KeyStore
from .problems import JSON, Problem
from .settings import GatewaySettings

T = TypeVar("T")


class Admin:
    """The endpoints of who runs the gateway. A tenant's admin key has to do with that tenant's keys alone."""

    def __init__(self, ledger: Ledger, gate: Gate, settings: GatewaySettings, bodies: Bodies) -> None:
        self.ledger = ledger
        self.gate = gate
        self._settings = settings
        self._bodies = bodies

    async def keys(self, request: Request) -> Response:
        """`GET /admin/v1/keys`: all keys, without the keys."""
        admin = await self.gate.administrator(request.scope)
        found = await self.run(lambda: self._store(admin).all())
        listed = AdminKeys(data=[_shown(key) for key in found if _may(admin, key)])
        return JSON(listed.model_dump(mode="json"))

    async def create(self, request: Request) -> Response:
        """`POST /admin/v1/keys`: a new key, whose text is told this once."""
        admin = await self.gate.administrator(request.scope)
        asked = await self.asked(request, KeyRequest)
        self._check_tenant(admin, asked.tenant)
        if asked.tier is not None and asked.tier not in self.gate.settings.tier_texts:
            raise Problem(400, f"The tier {asked.tier!r} is not known here.", param="tier")
        made = await self.run(
            lambda: self._store(admin).create(
                tenant=asked.tenant,
                project=asked.project,
                tier=asked.tier,
                end_users=asked.end_users,
                name=asked.name,
                prefix=asked.prefix or PREFIX,
                seconds=asked.ttl,
                models=asked.models,
                addresses=asked.addresses,
                budgets=asked.budgets,
            )
        )
        return _new(*made)

    async def rotate(self, request: Request) -> Response:
        """`POST /admin/v1/keys/ID/rotate`: another key in its place, which ends after `overlap` seconds."""
        admin = await self.gate.administrator(request.scope)
        asked = await self.asked(request, RotateRequest)
        key = await self._mine(admin, request)
        made = await self.run(lambda: self._store(admin).rotate(key.id, overlap=asked.overlap))
        return _new(*made)

    async def expire(self, request: Request) -> Response:
        """`POST /admin/v1/keys/ID/expire`: it ends in `ttl` seconds."""
        admin = await self.gate.administrator(request.scope)
        asked = await self.asked(request, ExpireRequest)
        key = await self._mine(admin, request)
        left = await self.run(lambda: self._store(admin).expire(key.id, asked.ttl))
        return JSON(_shown(left).model_dump(mode="json"))

    async def revoke(self, request: Request) -> Response:
        """`DELETE /admin/v1/keys/ID`: it ends at once, and its tokens with it."""
        admin = await self.gate.administrator(request.scope)
        key = await self._mine(admin, request)
        ended = await self.run(lambda: self._store(admin).revoke(key.id))
        return JSON(_shown(ended).model_dump(mode="json"))

    # ── tenants' own keys at providers ─────────────────────────────────────────────────

    async def own_keys(self, request: Request) -> Response:
        """`GET /admin/v1/byok`: which tenants have keys of their own at which providers."""
        admin = await self.gate.administrator(request.scope)
        found = await self.run(self._own(admin).listed)
        listed = OwnKeys(data=[_own_key(key, why) for key, why in found if _may(admin, key)])
        return JSON(listed.model_dump(mode="json"))

    async def set_own_key(self, request: Request) -> Response:
        """`POST /admin/v1/byok`: a tenant's calls to a provider are made with this key from now on."""
        admin = await self.gate.administrator(request.scope)
        asked = await self.asked(request, OwnKeyRequest)
        self._check_tenant(admin, asked.tenant)
        known = self._settings.providers
        if asked.provider not in known:
            raise Problem(
                400, f"No provider {asked.provider!r} is configured: {', '.join(known)}.", param="provider"
            )
        made = await self.run(lambda: self._own(admin).set(asked.tenant, asked.provider, asked.key))
        return JSON(_own_key(made, None).model_dump(mode="json"), status_code=201)

    async def remove_own_key(self, request: Request) -> Response:
        """`DELETE /admin/v1/byok/ID`: they are made with the gateway's key again."""
        admin = await self.gate.administrator(request.scope)
        own, id = self._own(admin), request.path_params["id"]
        found = next((k for k in await self.run(own.all) if k.id == id and _may(admin, k)), None)
        if found is None:
            raise Problem(404, "There is no such key.", retry=False)
        await self.run(lambda: own.remove(found.tenant, found.provider))
        return JSON(_own_key(found, None).model_dump(mode="json"))

    def _own(self, admin: Key) -> ProviderKeys:
        return ProviderKeys(self.ledger, Masters(self._settings.byok), actor=admin.id)

    # ── what they share ────────────────────────────────────────────────────────────────

    def _check_tenant(self, admin: Key, tenant: str) -> None:
        if admin.tenant and tenant != admin.tenant:
            raise Problem(403, f"This key administers the tenant {admin.tenant!r} alone.", param="tenant")

    def _store(self, admin: Key) -> KeyStore:
        return KeyStore(self.ledger, actor=admin.id)

    async def _mine(self, admin: Key, request: Request) -> Key:
        id = request.path_params["id"]
        key = await self.run(lambda: self._store(admin).by_id(id))
        if key is None or not _may(admin, key):
            raise Problem(404, "There is no such key.", retry=False)
        return key

    async def asked(self, request: Request, shape: type[M]) -> M:
        with self._bodies.reading() as held:
            raw = await held.read(request.headers, request.receive)
            return parse(raw, shape, self._settings.limits)[1]

    async def run(self, work: Callable[[], T]) -> T:
        try:
            return await anyio.to_thread.run_sync(work)
        except ConfigError as error:
            raise Problem(400, str(error), retry=False) from None


def _may(admin: Key, key: Key | SealedKey) -> bool:
    return not admin.tenant or key.tenant == admin.tenant


def _shown(key: Key) -> AdminKey:
    return AdminKey(**{name: getattr(key, name) for name in AdminKey.model_fields})


def _own_key(key: SealedKey, why: str | None) -> OwnKey:
    return OwnKey(
        id=key.id,
        tenant=key.tenant,
        provider=key.provider,
        hint=key.hint,
        created=key.created,
        master=key.master,
        unusable=why,
    )


def _new(key: Key, text: str) -> Response:
    made = NewKey(key=_shown(key), secret=text)
    return JSON(made.model_dump(mode="json"), status_code=201, headers={"Cache-Control": "no-store"})
