"""Judges methods against forgetting: `python -m benchmarks.continual` teaches one task after the other and asks all."""
