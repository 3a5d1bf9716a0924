"""Add the container images that a token is for.

Revision: 0009, after 0008
"""

import sqlalchemy as sa
from alembic import op

revision = "0009"
down_revision = "0008"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("token", sa.Column("images", sa.String(), server_default='["*"]', nullable=False))


def downgrade() -> None:
    op.drop_column("token", "images")
