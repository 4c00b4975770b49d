"""Benchmarks: one question per file, JSON out, ratios within one run."""
