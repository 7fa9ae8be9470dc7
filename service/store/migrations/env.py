"""What alembic runs for each command: here always on the connection, and in the transaction, that it is given."""

from __future__ import annotations

from alembic import context

from service.store.tables import metadata

# SQLite's schema changes within transactions too, now that they are begun as they should be (`database._sqlite`).
context.configure(connection=context.config.attributes["connection"], target_metadata=metadata, transactional_ddl=True)
context.run_migrations()
