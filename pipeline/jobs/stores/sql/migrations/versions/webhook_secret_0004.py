"""Which webhook secret a key has, and since when, so that it can be rotated.

Revision: 0004
"""

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("keys", sa.Column("secret_number", sa.Integer(), nullable=False, server_default="0"))
    op.add_column("keys", sa.Column("secret_rotated_at", sa.Double()))
