"""Where instances come from: live views, the disk snapshot behind them, probes, and our own registration."""
