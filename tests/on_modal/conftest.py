"""The store fixtures, for the tests of dispatching and of the containers' functions."""

from tests.jobs.store_fixtures import add_key, clock, pooled_postgres_url, postgres_url, store

__all__ = ["add_key", "clock", "pooled_postgres_url", "postgres_url", "store"]
