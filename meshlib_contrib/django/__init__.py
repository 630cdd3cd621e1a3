"""Django: a member of the mesh by its settings.

    INSTALLED_APPS = ["meshlib_contrib.django", ...]
    MIDDLEWARE = ["meshlib_contrib.django.MeshMiddleware", ...]    # first: it serves probes, and counts whatever is answered
    MESH = {"SERVICE": "shop", "REGISTRY": "consul://10.0.0.1:8500", "POLICIES": [shed()]}

``MESH`` has the settings of :class:`meshlib.Settings` in capital letters, under the environment's ``MESH_*``; and ``POLICIES``,
those that requests are under. A process that serves (and not one that runs another command of ``manage.py``) is registered
once its server listens, and leaves when it stops. ``manage.py check`` knows what can be wrong, ``manage.py mesh`` is the
command line.

    orders = client(Orders)      # anywhere; used in views
"""

from meshlib_contrib.extras import needs

with needs("django"):
    from meshlib_contrib.django.middleware import MeshMiddleware
    from meshlib_contrib.django.own import client, get_mesh

__all__ = ["MeshMiddleware", "client", "get_mesh"]
