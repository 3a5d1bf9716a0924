"""Add how far the steps of a job have come.

Revision: 0006, after 0005
"""

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("job", sa.Column("steps", sa.String(), nullable=True))


def downgrade() -> None:
    op.drop_column("job", "steps")
