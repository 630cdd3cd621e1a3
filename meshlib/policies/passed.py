"""What the layers say that a call passed: of a call that may be made, and of one that failed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeAlias

from meshlib.errors import CallError
from meshlib.flow import Call, Layer
from meshlib.policies.base import Policy, Site

Bound: TypeAlias = Sequence[tuple[Policy, Layer]]


def explained(bound: Bound, call: Call) -> list[tuple[str, Any]]:
    """What the layers that have an ``explain(call)`` say of ``call``, each with the kind of its policy. One that cannot, as
    the key function of a rule fails, says so."""
    return [(policy.kind, _said(layer, call)) for policy, layer in bound if hasattr(layer, "explain")]


def _said(layer: Any, call: Call) -> Any:
    try:
        return layer.explain(call)
    except Exception as problem:  # noqa: BLE001 - a rule's own function fails: the others explain all the same
        return f"cannot say: {problem!r:.200}"


class Passed:
    """The layers at ``site`` which a call passed that failed: what they say of it when somebody asks."""

    __slots__ = ("_bound", "_call", "_site")

    def __init__(self, site: Site, bound: Bound, call: Call) -> None:
        self._site, self._bound, self._call = site, bound, call

    def said(self) -> list[tuple[str, Any]]:
        """What each has to say, now."""
        return explained(self._bound, self._call)

    def __str__(self) -> str:
        site = self._site
        where = site.method if site.method.startswith(site.service) else f"{site.service} {site.method}".rstrip()
        return "\n".join([f"policies of {where}, as they are now:", *(f"  {kind}: {each}" for kind, each in self.said())])

    def __reduce__(self) -> tuple[type[str], tuple[str]]:
        """In another process there are no such layers: their text goes there."""
        return str, (str(self),)


def blame(error: CallError, site: Site, bound: Bound, call: Call) -> None:
    """``error`` comes out of the layers ``bound``: have it say how they stand, and what was left of the deadline."""
    timed = any(policy.kind == "timeout" for policy, _ in bound)  # then the call's own does not hold, and that layer has told
    if error.left is None and call.deadline is not None and not timed:
        error.left = call.deadline - site.clock()
    if bound:
        error.passed = (*error.passed, Passed(site, bound, call))
