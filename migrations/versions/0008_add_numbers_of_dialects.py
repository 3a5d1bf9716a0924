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
        "face",
        sa.Column("api", sa.String(), nullable=False),
        sa.Column("next_number", sa.Integer(), nullable=False),
        sa.PrimaryKeyConstraint("api", name=op.f("pk_face")),
    )
    op.add_column("job", sa.Column("face_number", sa.Integer(), nullable=True))
    op.create_index(
        "ix_job_face", "job", ["api", "face_number"], unique=True, sqlite_where=sa.text("face_number IS NOT NULL")
    )


def downgrade() -> None:
    op.drop_index("ix_job_face", table_name="job")
    op.drop_column("job", "face_number")
    op.drop_table("face")
