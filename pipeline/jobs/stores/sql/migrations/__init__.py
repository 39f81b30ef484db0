"""The schema's history: one file per migration in `versions/`, run by `Database.migrate`."""
