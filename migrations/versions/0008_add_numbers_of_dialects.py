"""Add the numbers that dialects give to their jobs.

Revision: 0008, after 0007
"""

import sqlalchemy as sa
from alembic import op

revision = "0008"
down_revision = "0007"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "dialect",
        sa.Column("api", sa.String(), nullable=False),
        sa.Column("next_number", sa.Integer(), nullable=False),
        sa.PrimaryKeyConstraint("api", name=op.f("pk_dialect")),
    )
    op.add_column("job", sa.Column("dialect_number", sa.Integer(), nullable=True))
    op.create_index(
        "ix_job_dialect",
        "job",
        ["api", "dialect_number"],
        unique=True,
        sqlite_where=sa.text("dialect_number IS NOT NULL"),
    )


def downgrade() -> None:
    op.drop_index("ix_job_dialect", table_name="job")
    op.drop_column("job", "dialect_number")
    op.drop_table("dialect")
