"""asyncqueue."""
