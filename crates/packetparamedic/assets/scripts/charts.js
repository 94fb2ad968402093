// The charts of history, runs and monitors.
