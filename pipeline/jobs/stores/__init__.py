"""Where job records are kept: `sql` for SQLite and Postgres, `kv` for a key-value map with an atomic create."""
