"""Add what a token allows, until when, and when it was used last.

Revision: 0004, after 0003
"""

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("token", sa.Column("scopes", sa.String(), server_default="admin", nullable=False))
    op.add_column("token", sa.Column("all_jobs", sa.Boolean(), server_default="0", nullable=False))
    op.add_column("token", sa.Column("scripts", sa.String(), server_default='["*"]', nullable=False))
    op.add_column("token", sa.Column("expires_at", sa.String(), nullable=True))
    op.add_column("token", sa.Column("last_used_at", sa.String(), nullable=True))


def downgrade() -> None:
    for name in ("last_used_at", "expires_at", "scripts", "all_jobs", "scopes"):
        op.drop_column("token", name)
