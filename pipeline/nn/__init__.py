"""Layers with weights that several parts of an engine share, and the download and loading of checkpoints."""
