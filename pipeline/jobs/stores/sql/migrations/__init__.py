"""The schema's history: one file per step in `versions/`, run by `Database.migrate`."""
