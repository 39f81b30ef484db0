"""The job store in SQLite or Postgres."""
