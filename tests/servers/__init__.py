"""Real servers, started by the tests on free ports with temporary data, and always stopped."""
