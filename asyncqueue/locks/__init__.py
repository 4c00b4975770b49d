"""Locks: one holder at a time, for a while."""
