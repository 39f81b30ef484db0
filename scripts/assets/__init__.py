"""Generates and vendors the files that the repository ships."""
