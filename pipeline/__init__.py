"""image-to-3d: the stages of one call (files, named by verbs) and what the stages use (folders, named by nouns)."""

__version__ = "0.1.0"
