"""Alembic's entry: runs the history on the connection that `Database.migrate` hands over."""

from alembic import context
from sqlmodel import SQLModel

import worker.jobs.tables  # noqa: F401  (fills the metadata)

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=SQLModel.metadata,
    render_as_batch=True,  # SQLite alters a table by copying it
)
context.run_migrations()
