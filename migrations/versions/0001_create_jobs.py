"""Create the tables of jobs and tokens.

Revision: 0001, the first
"""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "job",
        sa.Column("number", sa.Integer(), nullable=False),
        sa.Column("id", sa.String(), nullable=False),
        sa.Column("owner", sa.String(), nullable=False),
        sa.Column("api", sa.String(), nullable=False),
        sa.Column("name", sa.String(), nullable=True),
        sa.Column("summary", sa.String(), nullable=False),
        sa.Column("priority", sa.Integer(), nullable=False),
        sa.Column("spec", sa.String(), nullable=False),
        sa.Column("state", sa.String(), nullable=False),
        sa.Column("executor", sa.String(), nullable=True),
        sa.Column("created_at", sa.String(), nullable=False),
        sa.Column("started_at", sa.String(), nullable=True),
        sa.Column("finished_at", sa.String(), nullable=True),
        sa.Column("exit_code", sa.Integer(), nullable=True),
        sa.Column("exit_signal", sa.Integer(), nullable=True),
        sa.Column("error_code", sa.String(), nullable=True),
        sa.Column("error_detail", sa.String(), nullable=True),
        sa.Column("cancel_by", sa.String(), nullable=True),
        sa.Column("cancel_at", sa.String(), nullable=True),
        sa.Column("cancel_signal", sa.Integer(), nullable=True),
        sa.Column("cancel_grace", sa.Double(), nullable=True),
        sa.Column("signals", sa.String(), server_default="[]", nullable=False),
        sa.Column("stdout_bytes", sa.BigInteger(), server_default="0", nullable=False),
        sa.Column("stderr_bytes", sa.BigInteger(), server_default="0", nullable=False),
        sa.Column("disk_bytes", sa.BigInteger(), server_default="0", nullable=False),
        sa.CheckConstraint("(state IN ('queued', 'running')) = (finished_at IS NULL)", name=op.f("ck_job_ended")),
        sa.CheckConstraint(
            "state IN ('queued', 'running', 'succeeded', 'failed', 'timed_out', 'canceled', 'output_limit', 'lost')",
            name=op.f("ck_job_state"),
        ),
        sa.PrimaryKeyConstraint("number", name=op.f("pk_job")),
        sa.UniqueConstraint("id", name=op.f("uq_job_id")),
        sqlite_autoincrement=True,
    )
    op.create_index("ix_job_created", "job", ["created_at", "number"], unique=False)
    op.create_index(
        "ix_job_name",
        "job",
        ["name", "number"],
        unique=False,
        sqlite_where=sa.text("name IS NOT NULL"),
    )
    op.create_index("ix_job_owner", "job", ["owner", "number"], unique=False)
    op.create_index(
        "ix_job_queue",
        "job",
        ["state", "priority", "number"],
        unique=False,
        sqlite_where=sa.text("state = 'queued'"),
    )
    op.create_index("ix_job_state", "job", ["state", "number", "disk_bytes"], unique=False)
    op.create_table(
        "token",
        sa.Column("name", sa.String(), nullable=False),
        sa.Column("sha256", sa.String(), nullable=False),
        sa.Column("created_at", sa.String(), nullable=False),
        sa.PrimaryKeyConstraint("name", name=op.f("pk_token")),
    )
    op.create_table(
        "job_input",
        sa.Column("number", sa.Integer(), nullable=False),
        sa.Column("kind", sa.String(), nullable=False),
        sa.Column("name", sa.String(), nullable=False),
        sa.Column("content", sa.LargeBinary(), nullable=False),
        sa.ForeignKeyConstraint(["number"], ["job.number"], name=op.f("fk_job_input_number"), ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("number", "kind", "name", name=op.f("pk_job_input")),
    )
    op.create_table(
        "job_label",
        sa.Column("key", sa.String(), nullable=False),
        sa.Column("value", sa.String(), nullable=False),
        sa.Column("number", sa.Integer(), nullable=False),
        sa.ForeignKeyConstraint(["number"], ["job.number"], name=op.f("fk_job_label_number"), ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("key", "value", "number", name=op.f("pk_job_label")),
        sqlite_with_rowid=False,
    )
    op.create_index(op.f("ix_job_label_number"), "job_label", ["number"], unique=False)
    op.create_table(
        "job_signal",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("number", sa.Integer(), nullable=False),
        sa.Column("signal", sa.Integer(), nullable=False),
        sa.ForeignKeyConstraint(["number"], ["job.number"], name=op.f("fk_job_signal_number"), ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_job_signal")),
    )
    op.create_index(op.f("ix_job_signal_number"), "job_signal", ["number"], unique=False)


def downgrade() -> None:
    op.drop_index(op.f("ix_job_signal_number"), table_name="job_signal")
    op.drop_table("job_signal")
    op.drop_index(op.f("ix_job_label_number"), table_name="job_label")
    op.drop_table("job_label")
    op.drop_table("job_input")
    op.drop_table("token")
    op.drop_index("ix_job_state", table_name="job")
    op.drop_index(
        "ix_job_queue",
        table_name="job",
        sqlite_where=sa.text("state = 'queued'"),
    )
    op.drop_index("ix_job_owner", table_name="job")
    op.drop_index(
        "ix_job_name",
        table_name="job",
        sqlite_where=sa.text("name IS NOT NULL"),
    )
    op.drop_index("ix_job_created", table_name="job")
    op.drop_table("job")
