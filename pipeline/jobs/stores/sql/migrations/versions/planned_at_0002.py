"""When a task's due time was written, which tells whether that was before the clock stepped back.

Revision: 0002
"""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("tasks", sa.Column("planned_at", sa.Double(), nullable=False, server_default="0"))
