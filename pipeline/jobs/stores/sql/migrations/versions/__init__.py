"""The steps, named by revision."""
