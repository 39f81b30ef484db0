"""Signed webhooks: sent from the outbox until the receiver answers."""
