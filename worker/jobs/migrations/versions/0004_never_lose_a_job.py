"""Pause, retry and stalls; checkpoints inside an epoch; how exactly an attempt went on; errors with a patch"""

from typing import Any

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"

_STATUSES = "'queued', 'running', 'pausing', 'paused', 'cancelling', 'succeeded', 'failed', 'cancelled'"
_OUTCOMES = "'succeeded', 'failed', 'cancelled', 'paused', 'released', 'killed', 'crashed', 'stalled', 'worker_lost'"
_KINDS = "'micro_batch', 'stopped_early', 'diverged', 'checkpoint_corrupt'"


def upgrade() -> None:
    # SQLite changes a constraint by making the table anew. `Database.migrate` switches foreign keys off meanwhile:
    # to drop the old table would empty those that refer to it.
    with op.batch_alter_table("jobs") as jobs:
        jobs.add_column(sa.Column("forgiven", sa.Integer(), nullable=False, server_default="0"))
        jobs.add_column(sa.Column("stop_now", sa.Boolean(), nullable=False, server_default=sa.false()))
        _replace(jobs, "jobs_status_known", f"status IN ({_STATUSES})")
        owned = "status IN ('running', 'pausing', 'cancelling')"
        _replace(jobs, "jobs_worker_iff_owned", f"(worker_id IS NOT NULL) = ({owned})")
    with op.batch_alter_table("attempts") as attempts:
        attempts.add_column(sa.Column("resumed_batch", sa.Integer(), nullable=True))
        attempts.add_column(sa.Column("resume", sa.String(length=16), nullable=True))
        attempts.add_column(sa.Column("resume_reason", sa.String(length=300), nullable=True))
        _replace(attempts, "attempts_outcome_known", f"outcome IS NULL OR outcome IN ({_OUTCOMES})")
        attempts.create_check_constraint(
            "attempts_resume_known", "resume IS NULL OR resume IN ('exact', 'approximate')"
        )
    with op.batch_alter_table("events") as events:
        _replace(events, "events_kind_known", f"kind IN ({_KINDS})")
    op.create_table(
        "step_checkpoints",
        sa.Column("job_id", sa.String(length=64), nullable=False),
        sa.Column("attempt", sa.Integer(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("epoch", sa.Integer(), nullable=False),
        sa.Column("batch", sa.Integer(), nullable=False),
        sa.Column("path", sa.String(length=200), nullable=False),
        sa.Column("sha256", sa.String(length=64), nullable=False),
        sa.Column("bytes", sa.BigInteger(), nullable=False),
        sa.ForeignKeyConstraint(["job_id"], ["jobs.id"], ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("job_id"),
    )
    for table in ("jobs", "attempts", "datasets"):
        _sentences_are_hints(table)


def _replace(table: Any, name: str, condition: str) -> None:
    table.drop_constraint(name, type_="check")
    table.create_check_constraint(name, condition)


def _sentences_are_hints(name: str) -> None:
    """What to try was a sentence under `suggestion`, which is now a patch of the spec; sentences are under `hint`."""
    key = ("job_id", "number") if name == "attempts" else ("id",)
    table = sa.table(name, sa.column("error", sa.JSON()), *(sa.column(each) for each in key))
    connection = op.get_bind()
    for row in connection.execute(sa.select(table).where(table.c.error.is_not(None))).all():
        if isinstance(row.error, dict) and isinstance(row.error.get("suggestion"), str):
            error = row.error | {"suggestion": None, "hint": row.error["suggestion"]}
            is_row = sa.and_(*(table.c[each] == getattr(row, each) for each in key))
            connection.execute(sa.update(table).where(is_row).values(error=error))
