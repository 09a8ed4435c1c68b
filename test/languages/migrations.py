# How many of our tables Alembic's autogenerate would drop.
import os
import warnings

from alembic.autogenerate import produce_migrations, render_python_code
from alembic.migration import MigrationContext
from sqlalchemy import BigInteger, Column, Identity, MetaData, Numeric, Table, Text, create_engine
from sqlalchemy.dialects.postgresql import UUID

warnings.simplefilter("ignore")
exec(open("env.py").read())
metadata = MetaData()
Table("orders", metadata, Column("id", BigInteger, Identity(), primary_key=True), Column("installation_id", UUID),
      Column("total", Numeric(12, 2), nullable=False), Column("currency", Text, nullable=False))
connection = create_engine(os.environ["DATABASE_URL"]).connect()
for what, options in {"by itself": {}, "include_schemas": {"include_schemas": True},
                      "include_name": {"include_schemas": True, "include_name": include_name}}.items():
    context = MigrationContext.configure(connection, opts=options)
    code = render_python_code(produce_migrations(context, metadata).upgrade_ops)
    print(f"{what}: {code.count('drop_table')}")
