"""Brokers: at-least-once delivery of bytes."""
