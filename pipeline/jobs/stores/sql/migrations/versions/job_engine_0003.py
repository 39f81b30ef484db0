"""The engine that a job needs, by which workers choose; "" where any worker may claim it.

Revision: 0003
"""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("jobs", sa.Column("engine", sa.String(length=64), nullable=False, server_default=""))
