"""Sweeps, sinks, and what was answered for each test picture"""

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"


def upgrade() -> None:
    op.create_table(
        "sweeps",
        sa.Column("id", sa.String(length=64), nullable=False),
        sa.Column("owner", sa.String(length=64), nullable=False, server_default=""),
        sa.Column("name", sa.String(length=100), nullable=True),
        sa.Column("form", sa.JSON(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("finished_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("is_cancelled", sa.Boolean(), nullable=False),
        sa.Column("rung", sa.Integer(), nullable=False),
        sa.Column("idempotency_key", sa.String(length=255), nullable=True),
        sa.Column("request_sha256", sa.String(length=64), nullable=True),
        sa.PrimaryKeyConstraint("id"),
    )
    op.create_index("sweeps_by_owner", "sweeps", ["owner", "id"])
    op.create_index("sweeps_by_end", "sweeps", ["finished_at", "id"])
    op.create_index("sweeps_by_idempotency_key", "sweeps", ["owner", "idempotency_key"], unique=True)
    op.execute("ALTER TABLE jobs ADD COLUMN sweep_id VARCHAR(64) REFERENCES sweeps (id)")  # a key without a name
    with op.batch_alter_table("jobs") as jobs:
        jobs.add_column(sa.Column("trial", sa.Integer(), nullable=True))
        jobs.create_check_constraint("jobs_trial_iff_sweep", "(sweep_id IS NULL) = (trial IS NULL)")
    op.create_index("jobs_by_sweep", "jobs", ["sweep_id", "trial"], unique=True)
    with op.batch_alter_table("reports") as reports:
        reports.add_column(sa.Column("answers", sa.LargeBinary(), nullable=True))
    op.create_table(
        "sinks",
        sa.Column("job_id", sa.String(length=64), nullable=False),
        sa.Column("kind", sa.String(length=16), nullable=False),
        sa.Column("seq", sa.Integer(), nullable=False),
        sa.Column("is_done", sa.Boolean(), nullable=False),
        sa.Column("run_id", sa.String(length=64), nullable=True),
        sa.CheckConstraint("kind IN ('csv', 'tensorboard', 'mlflow')", name="sinks_kind_known"),
        sa.ForeignKeyConstraint(["job_id"], ["jobs.id"], ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("job_id", "kind"),
    )
