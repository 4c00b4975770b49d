"""Shipped for tests: contract suites, faults, clocks."""
