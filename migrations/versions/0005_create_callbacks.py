"""Create the outbox of callbacks.

Revision: 0005, after 0004
"""

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("job", sa.Column("callback_url", sa.String(), nullable=True))
    op.create_table(
        "callback",
        sa.Column("number", sa.Integer(), nullable=False),
        sa.Column("url", sa.String(), nullable=False),
        sa.Column("receiver", sa.String(), nullable=False),
        sa.Column("state", sa.String(), nullable=False),
        sa.Column("due_at", sa.String(), nullable=False),
        sa.Column("owner", sa.String(), nullable=True),
        sa.Column("tries", sa.Integer(), server_default="0", nullable=False),
        sa.Column("attempts", sa.String(), server_default="[]", nullable=False),
        sa.CheckConstraint("state IN ('pending', 'delivered', 'failed', 'stopped')", name=op.f("ck_callback_state")),
        sa.ForeignKeyConstraint(["number"], ["job.number"], name=op.f("fk_callback_number"), ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("number", name=op.f("pk_callback")),
    )
    op.create_index(
        "ix_callback_pending", "callback", ["receiver", "due_at"], sqlite_where=sa.text("state = 'pending'")
    )


def downgrade() -> None:
    op.drop_table("callback")
    op.drop_column("job", "callback_url")
