"""The portable half: it knows contracts, never a driver."""
