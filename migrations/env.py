"""Alembic's entry: works on the connection that ``jobrunner.store.migrate`` hands over."""

from alembic import context

from jobrunner.store.models import Base

connection = context.config.attributes["connection"]
context.configure(connection=connection, target_metadata=Base.metadata, render_as_batch=True)
context.run_migrations()
