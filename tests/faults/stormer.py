"""A consumer of a backend that always fails, as a process of its own:

    python -m tests.faults.stormer PORT RATE SECONDS BUDGET

It makes ``RATE`` calls per second (fewer if it is not fast enough) for ``SECONDS``, each of which may be tried three times,
with the retry budget or (``none``) without, and prints how many it made.
"""

from __future__ import annotations

import sys
import time

from meshlib import Mesh, Settings
from meshlib.policies import retry
from meshlib.policies.budget import BUDGET


def storm(port: int, rate: int, seconds: float, policy: retry) -> int:
    """Calls made, one after the other, each when it is due."""
    settings = Settings(registry=f"static://orders=127.0.0.1:{port}", timeout=30.0)
    made = 0
    with Mesh(settings) as mesh, mesh.http("orders", policies=[policy]) as http:
        mesh.snapshot("orders")
        start = time.monotonic()
        while (passed := time.monotonic() - start) < seconds:
            time.sleep(max(0.0, made / rate - passed))
            assert http.get("/").status_code == 503
            made += 1
    return made


def main() -> None:
    """See the module."""
    port, rate, seconds, budget = sys.argv[1:]
    policy = retry(base=0.0, budget=None if budget == "none" else BUDGET)
    print(storm(int(port), int(rate), float(seconds), policy))


if __name__ == "__main__":
    main()
