"""``health``: the checks of an app, made here."""

from __future__ import annotations

from typing import Any

from meshlib.cli.session import Session
from meshlib.cli.setup_facts import Health, Part


def health(session: Session) -> Health:
    """Make the health checks that the app has added to its mesh (flask mesh health, manage.py mesh health). The exit code is 1
    when one fails."""
    with session.mesh() as mesh:
        found = mesh.management.examine()
    parts = []
    for name, one in found.items():
        details: dict[str, Any] = {key: str(value) for key, value in one.details.items()}
        parts.append(Part(name=name, status=one.status, why=one.why or details.get("error", ""), details=details))
    return Health(parts=parts)
