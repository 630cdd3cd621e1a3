"""What Django is told of us: checks, and what happens when a test overrides the setting."""

from __future__ import annotations

from django.apps import AppConfig
from django.core.signals import request_started, setting_changed


class MeshConfig(AppConfig):
    """``INSTALLED_APPS = ["meshlib_contrib.django"]``"""

    name = "meshlib_contrib.django"
    label = "meshlib"
    verbose_name = "Mesh"

    def ready(self) -> None:
        """Called once all apps are there."""
        from django.core.checks import register  # noqa: PLC0415

        from meshlib_contrib.django import checks, own  # noqa: PLC0415

        register(checks.checks)
        setting_changed.connect(own.forget, dispatch_uid="meshlib")
        if not checks.places():
            request_started.connect(checks.at_first_request, dispatch_uid="meshlib")
