"""Add what is no longer kept of a job's output, and to which state a job is driven.

Revision: 0003, after 0002
"""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("job", sa.Column("holes", sa.String(), server_default="{}", nullable=False))
    op.add_column("job", sa.Column("ending", sa.String(), nullable=True))


def downgrade() -> None:
    op.drop_column("job", "ending")
    op.drop_column("job", "holes")
