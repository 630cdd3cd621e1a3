"""Instances as JSON documents, for the backends whose storage is ours to shape (local, etcd, static)."""

from __future__ import annotations

from typing import Any

import msgspec

from meshlib.errors import InvalidAnswer
from meshlib.model import Instance, ServiceUrl

MAX_DOCUMENT = 64 * 1024
"""Bytes an instance's document may have (threat 15)."""

_decoder = msgspec.json.Decoder(dict[str, str | int | float | bool | dict[str, Any] | list[Any] | None])


def encode(instance: Instance) -> bytes:
    """``instance`` as a JSON object."""
    return msgspec.json.encode(instance.fields())


def decode(document: bytes, service: ServiceUrl) -> Instance:
    """The inverse, for an instance of ``service``. Raises :class:`InvalidAnswer` for anything else."""
    if len(document) > MAX_DOCUMENT:
        raise InvalidAnswer(f"an instance of {service} has a document of {len(document)} bytes")
    try:
        fields = _decoder.decode(document)
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError) as problem:
        raise InvalidAnswer(f"an instance of {service} has an unreadable document: {problem}") from problem
    return Instance.parse({**fields, "service": service.service, "namespace": service.namespace})
