"""Add the programs that a token is for.

Revision: 0007, after 0006
"""

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("token", sa.Column("commands", sa.String(), server_default='["*"]', nullable=False))


def downgrade() -> None:
    op.drop_column("token", "commands")
