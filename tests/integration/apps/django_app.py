"""Django, as one file: ``python -m tests.integration.apps.django_app runserver 8000``, ``application`` and ``asgi`` for servers.
It calls itself by its name."""

from __future__ import annotations

import os
import sys

from django.conf import settings
from django.core.asgi import get_asgi_application
from django.core.wsgi import get_wsgi_application
from django.http import HttpRequest, HttpResponse
from django.urls import path

from meshlib_contrib.django import get_mesh


def drain(_: HttpRequest) -> HttpResponse:
    """Have it drained, if it is registered."""
    found = list(get_mesh()._registrations)
    for registration in found:
        registration.drain()
    return HttpResponse("draining" if found else "nothing")


async def call(_: HttpRequest) -> HttpResponse:
    """Call itself."""
    async with get_mesh().ahttp("shop") as http:
        return HttpResponse((await http.get("/pid")).content)


def pid(_: HttpRequest) -> HttpResponse:
    """Say who serves."""
    return HttpResponse(str(os.getpid()))


urlpatterns = [path("drain", drain), path("call", call), path("pid", pid)]

settings.configure(
    SECRET_KEY="secret", ROOT_URLCONF=__name__, ALLOWED_HOSTS=["*"], DEBUG=True, LOGGING_CONFIG=None,
    INSTALLED_APPS=["meshlib_contrib.django"], MIDDLEWARE=["meshlib_contrib.django.MeshMiddleware"], MESH={"ZONE": "a"},
)  # fmt: skip
if __name__ == "__main__":
    from django.core.management import execute_from_command_line

    execute_from_command_line(sys.argv)
elif "asgi" in os.environ.get("SERVES", ""):
    asgi = get_asgi_application()
else:
    application = get_wsgi_application()
