"""The version of this package. A module of its own, so that no other module imports the package root for it."""

__version__ = "0.1.0"
