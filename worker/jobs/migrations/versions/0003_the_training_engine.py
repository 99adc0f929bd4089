"""Threads of a job, more metrics, events, and the report of the newest epoch"""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"


def upgrade() -> None:
    # Plain columns that may be null: SQLite adds them without rebuilding the table.
    op.add_column("jobs", sa.Column("threads", sa.Integer(), nullable=True))
    op.add_column("epochs", sa.Column("gradient_norm", sa.Float(), nullable=True))
    op.add_column("epochs", sa.Column("peak_memory_bytes", sa.BigInteger(), nullable=True))
    op.add_column("epochs", sa.Column("test_top5_accuracy", sa.Float(), nullable=True))
    op.add_column("epochs", sa.Column("test_f1", sa.Float(), nullable=True))
    op.add_column("checkpoints", sa.Column("weights_sha256", sa.String(length=64), nullable=True))

    op.create_table(
        "events",
        sa.Column("job_id", sa.String(length=64), nullable=False),
        sa.Column("seq", sa.Integer(), nullable=False),
        sa.Column("at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("attempt", sa.Integer(), nullable=False),
        sa.Column("epoch", sa.Integer(), nullable=False),
        sa.Column("kind", sa.String(length=32), nullable=False),
        sa.Column("detail", sa.String(length=300), nullable=False),
        sa.CheckConstraint("kind IN ('micro_batch', 'stopped_early', 'diverged')", name="events_kind_known"),
        sa.ForeignKeyConstraint(["job_id"], ["jobs.id"], ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("job_id", "seq"),
    )
    op.create_table(
        "reports",
        sa.Column("job_id", sa.String(length=64), nullable=False),
        sa.Column("epoch", sa.Integer(), nullable=False),
        sa.Column("contents", sa.JSON(), nullable=False),
        sa.ForeignKeyConstraint(["job_id"], ["jobs.id"], ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("job_id"),
    )
