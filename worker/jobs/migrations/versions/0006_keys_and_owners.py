"""Keys with scopes, what belongs to whom, turns, labels, idempotency keys and webhooks"""

import json

import sqlalchemy as sa
from alembic import op
from alembic.operations import BatchOperations

from worker.jobs.ids import new_id

revision = "0006"
down_revision = "0005"


def upgrade() -> None:
    _jobs()
    _keys()
    with op.batch_alter_table("datasets") as datasets:
        _owned(datasets)
        datasets.drop_index("datasets_by_name")
        datasets.create_index("datasets_by_name", ["owner", "name", "version"], unique=True)
    _aliases()
    _webhooks()


def _owned(table: BatchOperations) -> None:
    table.add_column(sa.Column("owner", sa.String(length=64), nullable=False, server_default=""))


def _jobs() -> None:
    with op.batch_alter_table("jobs") as jobs:
        _owned(jobs)
        jobs.add_column(sa.Column("priority", sa.Integer(), nullable=False, server_default="0"))
        jobs.add_column(sa.Column("idempotency_key", sa.String(length=255), nullable=True))
        jobs.add_column(sa.Column("request_sha256", sa.String(length=64), nullable=True))
        jobs.add_column(sa.Column("request_id", sa.String(length=32), nullable=True))
    op.create_index("jobs_by_owner", "jobs", ["owner", "id"])
    op.create_index("jobs_by_owner_and_status", "jobs", ["owner", "status", "id"])
    op.create_index("jobs_by_end", "jobs", ["status", "finished_at", "id"])
    op.create_index("jobs_by_turn", "jobs", ["status", "owner", "priority", "id"])
    op.create_index("jobs_by_idempotency_key", "jobs", ["owner", "idempotency_key"], unique=True)
    labels = op.create_table(
        "labels",
        sa.Column("job_id", sa.String(length=64), nullable=False),
        sa.Column("key", sa.String(length=100), nullable=False),
        sa.Column("value", sa.String(length=100), nullable=False),
        sa.ForeignKeyConstraint(["job_id"], ["jobs.id"], ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("job_id", "key"),
    )
    op.create_index("labels_by_value", "labels", ["key", "value", "job_id"])
    connection = op.get_bind()
    jobs_table = sa.table("jobs", sa.column("id", sa.String()), sa.column("labels", sa.JSON()))
    rows = [
        {"job_id": job_id, "key": key, "value": value}
        for job_id, found in connection.execute(sa.select(jobs_table.c.id, jobs_table.c.labels)).all()
        for key, value in (found or {}).items()
    ]
    if rows:
        connection.execute(sa.insert(labels), rows)
    op.create_table(
        "turns",
        sa.Column("owner", sa.String(length=64), nullable=False),
        sa.Column("at", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("owner"),
    )


def _keys() -> None:
    """Every key of before could do everything."""
    connection = op.get_bind()
    before = connection.execute(sa.text("SELECT sha256, prefix, created_at FROM api_keys")).mappings().all()
    op.drop_table("api_keys")
    api_keys = op.create_table(
        "api_keys",
        sa.Column("id", sa.String(length=64), nullable=False),
        sa.Column("sha256", sa.String(length=64), nullable=False),
        sa.Column("prefix", sa.String(length=16), nullable=False),
        sa.Column("name", sa.String(length=100), nullable=True),
        sa.Column("owner", sa.String(length=64), nullable=False),
        sa.Column("scopes", sa.JSON(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("expires_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("revoked_at", sa.DateTime(timezone=True), nullable=True),
        sa.PrimaryKeyConstraint("id"),
    )
    op.create_index("api_keys_by_digest", "api_keys", ["sha256"], unique=True)
    whole = {"owner": "", "scopes": json.dumps(["admin"])}
    _insert(api_keys, [dict(row) | whole | {"id": new_id()} for row in before])


def _aliases() -> None:
    """A name is its owner's: another primary key, and so another table."""
    connection = op.get_bind()
    before = connection.execute(sa.text("SELECT * FROM aliases")).mappings().all()
    op.drop_table("aliases")
    aliases = op.create_table(
        "aliases",
        sa.Column("owner", sa.String(length=64), nullable=False),
        sa.Column("name", sa.String(length=64), nullable=False),
        sa.Column("job_id", sa.String(length=64), nullable=False),
        sa.Column("epoch", sa.Integer(), nullable=False),
        sa.Column("version", sa.Integer(), nullable=False),
        sa.Column("previous_job_id", sa.String(length=64), nullable=True),
        sa.Column("previous_epoch", sa.Integer(), nullable=True),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("updated_at", sa.DateTime(timezone=True), nullable=False),
        sa.CheckConstraint("(previous_job_id IS NULL) = (previous_epoch IS NULL)", name="aliases_previous_whole"),
        sa.ForeignKeyConstraint(["job_id"], ["jobs.id"]),
        sa.PrimaryKeyConstraint("owner", "name"),
    )
    op.create_index("aliases_by_job", "aliases", ["job_id"])
    _insert(aliases, [dict(row) | {"owner": ""} for row in before])


def _insert(table: sa.Table, rows: list[dict[str, object]]) -> None:
    """Rows as they were read, without types: SQLite's times are texts then."""
    for row in rows:
        names = ", ".join(row)
        values = ", ".join(f":{name}" for name in row)
        op.get_bind().execute(sa.text(f"INSERT INTO {table.name} ({names}) VALUES ({values})"), row)  # noqa: S608  # nosec B608


def _webhooks() -> None:
    op.create_table(
        "deliveries",
        sa.Column("id", sa.String(length=64), nullable=False),
        sa.Column("job_id", sa.String(length=64), nullable=False),
        sa.Column("hook", sa.Integer(), nullable=False),
        sa.Column("event", sa.String(length=32), nullable=False),
        sa.Column("payload", sa.JSON(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("status", sa.String(length=16), nullable=False),
        sa.Column("tries", sa.Integer(), nullable=False),
        sa.Column("next_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("settled_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("error", sa.String(length=200), nullable=True),
        sa.CheckConstraint("status IN ('pending', 'delivered', 'given_up')", name="deliveries_status_known"),
        sa.CheckConstraint("(status = 'pending') = (next_at IS NOT NULL)", name="deliveries_next_at_iff_pending"),
        sa.ForeignKeyConstraint(["job_id"], ["jobs.id"], ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("id"),
    )
    op.create_index("deliveries_by_job", "deliveries", ["job_id", "id"])
    op.create_index("deliveries_due", "deliveries", ["status", "next_at"])
