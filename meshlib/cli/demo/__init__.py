"""The demo: the main job in real processes, with its failures."""
