"""Create the table of idempotency keys, and the index for exclusive names.

Revision: 0002, after 0001
"""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

ACTIVE = "name IS NOT NULL AND finished_at IS NULL"


def upgrade() -> None:
    op.create_index("ix_job_active_name", "job", ["name", "number"], unique=False, sqlite_where=sa.text(ACTIVE))
    op.create_table(
        "idempotency_key",
        sa.Column("owner", sa.String(), nullable=False),
        sa.Column("key", sa.String(), nullable=False),
        sa.Column("fingerprint", sa.String(), nullable=False),
        sa.Column("number", sa.Integer(), nullable=False),
        sa.ForeignKeyConstraint(["number"], ["job.number"], name=op.f("fk_idempotency_key_number"), ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("owner", "key", name=op.f("pk_idempotency_key")),
        sqlite_with_rowid=False,
    )
    op.create_index(op.f("ix_idempotency_key_number"), "idempotency_key", ["number"], unique=False)


def downgrade() -> None:
    op.drop_index(op.f("ix_idempotency_key_number"), table_name="idempotency_key")
    op.drop_table("idempotency_key")
    op.drop_index("ix_job_active_name", table_name="job", sqlite_where=sa.text(ACTIVE))
