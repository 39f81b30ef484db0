"""Engines: a model with its weights, behind one protocol. They do not know each other."""
