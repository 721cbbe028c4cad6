"""Tuning the options of a search algorithm: many searches of one problem, by Ray Tune (docs/tuning.md)."""
