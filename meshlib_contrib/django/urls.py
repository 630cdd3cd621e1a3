"""The management endpoints as routes, for projects that want them elsewhere than at the top, or behind a view decorator:

path("ops/", include("meshlib_contrib.django.urls"))
"""

from __future__ import annotations

from dataclasses import replace

from django.http import HttpRequest, HttpResponse
from django.urls import path

from meshlib_contrib.django.middleware import ask_of, page_of
from meshlib_contrib.django.own import get_mesh

app_name = "mesh"


def page(request: HttpRequest, page: str) -> HttpResponse:
    """One of them."""
    return page_of(get_mesh().management.answer(replace(ask_of(request), path=page)), request)


urlpatterns = [
    path(each.strip("/"), page, {"page": each}, name=each.strip("/").replace("/", "-")) for each in get_mesh().management.paths
]
