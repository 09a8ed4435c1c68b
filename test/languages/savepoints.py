# What is left of an order whose event is invalid, with savepoint.py and without a savepoint.
import os

import psycopg

exec(open("savepoint.py").read())
ID = "0f1e2d3c-4b5a-4978-8695-a4b3c2d1e0f9"
with psycopg.connect(os.environ["DATABASE_URL"], autocommit=True) as conn:
    buy(conn, ID, 77, "[]")
    print("kept:", conn.execute("SELECT count(*) FROM orders WHERE total = 77").fetchone()[0] == 1)
    try:
        with conn.transaction():
            conn.execute("INSERT INTO orders (total, currency) VALUES (78, 'USD')")
            try:
                conn.execute("SELECT onside_attribution.track('e', %s, '[]')", (ID,))
            except psycopg.Error:
                pass
    except psycopg.Error:
        pass
    print("without it:", conn.execute("SELECT count(*) FROM orders WHERE total = 78").fetchone()[0] == 1)
