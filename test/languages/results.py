# What psycopg 3 returns.
import os

import psycopg

with psycopg.connect(os.environ["DATABASE_URL"]) as conn:
    value = conn.execute("SELECT onside_attribution.track('e', gen_random_uuid(), '{}')").fetchone()[0]
    print("type:", type(value).__name__)
