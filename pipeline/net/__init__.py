"""Outgoing HTTP requests: which addresses are allowed, and limits of time and size."""
