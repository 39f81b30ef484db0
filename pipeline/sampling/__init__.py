"""Samplers as plain functions over a velocity."""
