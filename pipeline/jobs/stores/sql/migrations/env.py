"""Alembic's entry: runs the migrations on the connection, and inside the transaction, that the service hands in."""

from alembic import context

from pipeline.jobs.stores.sql.schema import metadata

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=metadata,
    transactional_ddl=True,
    render_as_batch=True,
)
with context.begin_transaction():
    context.run_migrations()
