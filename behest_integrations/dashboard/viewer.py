"""Who looks at the pages, and what of the ledger is theirs to see."""

from __future__ import annotations

from dataclasses import dataclass, replace

from ..reports import Asked


@dataclass(frozen=True)
class Viewer:
    """Somebody who looks, and whose calls are shown to them: only those of all that is set.

    Attributes:
        tenant, project, user: None: anybody's.
        name: who they are, for the top of the page; "" where nobody in particular is asked for.
        can_leave: whether they have come in with a key or token, and can go out again.
    """

    tenant: str | None = None
    project: str | None = None
    user: str | None = None
    name: str = ""
    can_leave: bool = False

    @property
    def is_end_user(self) -> bool:
        """Whether they see their own calls alone."""
        return self.user is not None

    @property
    def is_bounded(self) -> bool:
        """Whether there is anything in the ledger that they must not see."""
        return self.tenant is not None or self.project is not None or self.user is not None

    def narrowed(self, asked: Asked) -> Asked | None:
        """What is asked, within what they may see; None if it asks for somebody else's."""
        for name in ("tenant", "project", "user"):
            own, said = getattr(self, name), getattr(asked, name)
            if own is not None and said is not None and said != own:
                return None
            if own is not None:
                asked = replace(asked, **{name: own})
        return asked
