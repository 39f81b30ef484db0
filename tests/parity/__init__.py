"""Golden cases: what the released models compute, number by number."""
