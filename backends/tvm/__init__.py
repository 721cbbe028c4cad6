"""Fast code out of TVM by deterministic schedules, and its measured latency."""
