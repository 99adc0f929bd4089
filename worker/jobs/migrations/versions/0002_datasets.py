"""Datasets are rows, jobs name the version that they train on, and regression has metrics of its own"""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    op.create_table(
        "datasets",
        sa.Column("id", sa.String(length=64), nullable=False),
        sa.Column("name", sa.String(length=64), nullable=False),
        sa.Column("version", sa.Integer(), nullable=False),
        sa.Column("form", sa.JSON(), nullable=True),
        sa.Column("status", sa.String(length=16), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("finished_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("attempt", sa.Integer(), nullable=False),
        sa.Column("lost", sa.Integer(), nullable=False),
        sa.Column("worker_id", sa.String(length=64), nullable=True),
        sa.Column("lease_expires_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("step", sa.String(length=16), nullable=True),
        sa.Column("done", sa.Integer(), nullable=False),
        sa.Column("total", sa.Integer(), nullable=False),
        sa.Column("card", sa.JSON(), nullable=True),
        sa.Column("findings", sa.JSON(), nullable=True),
        sa.Column("error", sa.JSON(), nullable=True),
        sa.CheckConstraint(
            "status IN ('uploaded', 'preparing', 'ready', 'invalid', 'deleted')", name="datasets_status_known"
        ),
        sa.CheckConstraint("(worker_id IS NOT NULL) = (status = 'preparing')", name="datasets_worker_iff_preparing"),
        sa.CheckConstraint("(worker_id IS NULL) = (lease_expires_at IS NULL)", name="datasets_lease_iff_worker"),
        sa.CheckConstraint("status <> 'ready' OR card IS NOT NULL", name="datasets_card_if_ready"),
        sa.CheckConstraint("(status = 'invalid') = (error IS NOT NULL)", name="datasets_error_iff_invalid"),
        sa.PrimaryKeyConstraint("id"),
    )
    op.create_index("datasets_by_name", "datasets", ["name", "version"], unique=True)
    op.create_index("datasets_by_status", "datasets", ["status", "id"])

    # Not by batch: SQLite would rebuild the table, and dropping the old one would delete what points at its jobs.
    op.execute("ALTER TABLE jobs ADD COLUMN dataset_id VARCHAR(64) REFERENCES datasets (id)")
    op.create_index("jobs_by_dataset", "jobs", ["dataset_id"])
    op.execute(
        "INSERT INTO datasets (id, name, version, status, created_at, attempt, lost, done, total) "
        "SELECT '000000000000000000000000', 'fashion-mnist', 1, 'uploaded', first_at, 0, 0, 0, 0 "
        "FROM (SELECT min(created_at) AS first_at FROM jobs) AS first WHERE first_at IS NOT NULL"
    )
    op.execute("UPDATE jobs SET dataset_id = '000000000000000000000000'")

    with op.batch_alter_table("epochs") as epochs:
        epochs.alter_column("test_accuracy", existing_type=sa.Float(), nullable=True)
        epochs.add_column(sa.Column("test_mae", sa.Float(), nullable=True))
        epochs.add_column(sa.Column("test_r2", sa.Float(), nullable=True))
