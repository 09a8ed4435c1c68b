# What psycopg2 makes of parameters without casts, and with those of cast.sql.
import os
import re

import psycopg2

ID = "0f1e2d3c-4b5a-4978-8695-a4b3c2d1e0f9"
conn = psycopg2.connect(os.environ["DATABASE_URL"])
conn.autocommit = True
cursor = conn.cursor()


def say(what, sql, *values):
    try:
        cursor.execute(sql, values)
        print(f"{what}: {cursor.fetchone()[0]}")
    except Exception as error:
        print(f"{what}: {str(error).splitlines()[0]}")


say("cast", re.sub(r"\$\d", "%s", os.environ["CAST"]), ID, 9.9, "usd", "2026-05-05T12:00:00Z", 51, '{"sku": "gems"}')
say("float", "SELECT (onside_attribution.purchase(%s, %s, %s)).payload ->> 'amount'", ID, 9.9, "USD")
say("key", "SELECT onside_attribution.event_id('orders', %s)", 51)
say("dict", "SELECT onside_attribution.track('e', %s, %s)", ID, {"level": 7})
