"""The main job in real processes on the embedded registry, with its failures; exits 1 if any of it does not hold.

make demo, or with the package installed: mesh demo
"""

from __future__ import annotations

from meshlib.cli.demo.scenes import main

if __name__ == "__main__":
    main()
