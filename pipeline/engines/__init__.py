"""Engines: models with their weights behind one protocol. Engines do not import each other."""
