"""Encoders, one per file format: arrays in, bytes out. They make no decision about the mesh."""
