"""Alembic's entry point: runs the migrations on the service's connection, inside its transaction."""

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
