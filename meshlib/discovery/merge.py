"""What a new listing means for what was known: decided without I/O, so that every case is a row of a test.

A registry that has lost its state answers with an empty or a much shorter list, and it answers so in good faith (dubbo#1508,
eureka#1490). Such a list is data only once it is confirmed: until then whoever is missing is a suspect. It stays in the
snapshot, is used last, and is dropped when a probe fails or at the hard age.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from meshlib.backends.base import Listing
from meshlib.model import Instance, ServiceUrl, Snapshot, Status


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class Known:
    """A snapshot with the history behind it: when each suspect came to be one (``since``, monotonic seconds: a clock that is
    set must not age them), and each tombstone (``gone``, wall-clock seconds, because the disk knows no others)."""

    snapshot: Snapshot
    since: Mapping[str, float] = field(default_factory=dict)
    gone: Mapping[str, float] = field(default_factory=dict)


def merge(known: Known | None, listing: Listing, service: ServiceUrl, *, now: float, clock: float, hard_age: float) -> Known:
    """What is known after ``listing`` arrived at wall-clock time ``now`` and monotonic time ``clock``."""
    listed = {instance.id: instance for instance in listing.instances}
    before = known.snapshot if known else Snapshot(service)
    missing = [instance for instance in before.instances if instance.id not in listed]
    gone = {key: when for key, when in (known.gone if known else {}).items() if key not in listed and now - when < hard_age}
    if not missing:  # as nearly always
        return Known(Snapshot(service, listing.instances, confirmed=now, revision=listing.revision), gone=gone)
    suspects = _suspects(before, missing)
    since = {one.id: (known.since if known else {}).get(one.id, clock) for one in suspects}
    kept = {one.id: one for one in suspects if clock - since[one.id] < hard_age}
    gone |= {one.id: now for one in missing if one.id not in kept}
    instances = {**kept, **listed}
    snapshot = Snapshot(
        service,
        tuple(instances[key] for key in sorted(instances)),
        frozenset(kept),
        confirmed=now,
        revision=listing.revision,
    )
    return Known(snapshot, {key: since[key] for key in kept}, gone)


def _suspects(before: Snapshot, missing: list[Instance]) -> list[Instance]:
    """Those of ``missing`` that the list may have left out by mistake."""
    old = [one for one in missing if one.id in before.suspects]
    # One that said it was leaving has left, and does not count.
    fresh = [one for one in missing if _staying(one, before)]
    sudden = len(fresh) * 2 > sum(_staying(one, before) for one in before.instances)
    return old + (fresh if sudden else [])


def _staying(one: Instance, before: Snapshot) -> bool:
    return one.id not in before.suspects and one.status is not Status.DRAINING


def drop(known: Known, instance_id: str, *, now: float) -> Known:
    """What is known once a probe has found the suspect ``instance_id`` dead. Others, and those listed again, stay."""
    before = known.snapshot
    if instance_id not in before.suspects:
        return known
    snapshot = Snapshot(
        before.service,
        tuple(one for one in before.instances if one.id != instance_id),
        before.suspects - {instance_id},
        before.confirmed,
        before.source,
        before.revision,
    )
    since = {key: when for key, when in known.since.items() if key != instance_id}
    return Known(snapshot, since, {**known.gone, instance_id: now})
