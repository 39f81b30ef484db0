"""Jobs: the record, its states, the stores that keep it, the ledger. Knows nothing of HTTP or Modal."""
