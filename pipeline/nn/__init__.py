"""Layers with weights that two or more parts of an engine share, and the loading of checkpoints."""
