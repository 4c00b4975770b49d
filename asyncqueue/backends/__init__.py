"""Backends: what is known of tasks, and waiting for it."""
