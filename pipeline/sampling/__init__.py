"""Samplers: plain functions over a velocity. They know no model."""
