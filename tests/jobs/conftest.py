"""The fixtures of `store_fixtures`, for every test of this folder."""

from tests.jobs.store_fixtures import add_key, clock, database_url, pooled_postgres_url, postgres_url, store

__all__ = ["add_key", "clock", "database_url", "pooled_postgres_url", "postgres_url", "store"]
