"""Apps that are served by real servers in tests."""
