"""The job store in a key-value map."""
