"""Helpers for the frameworks our users use."""
