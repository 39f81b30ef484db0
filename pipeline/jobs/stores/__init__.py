"""The stores of job records: `sql` for SQLite and Postgres, `kv` for a key-value map with an atomic create."""
