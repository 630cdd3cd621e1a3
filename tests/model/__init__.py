"""The watch model checker: random histories of what befalls a registry, and generated payloads, against naive truths.

``MESHLIB_HISTORY=consul:17`` plays that one history only; ``make soak`` plays many more of them.
"""
