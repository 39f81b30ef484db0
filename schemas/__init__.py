"""The HTTP contract as pydantic models. Knows nothing of the pipeline behind it."""
