"""How to reach a service, once per service."""
