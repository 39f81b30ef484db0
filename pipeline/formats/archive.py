"""What the formats that are zip archives share, so that equal content gives equal bytes."""

FIXED_TIME = (1980, 1, 1, 0, 0, 0)
"""The time that every file in an archive has: the earliest that zip can state."""
