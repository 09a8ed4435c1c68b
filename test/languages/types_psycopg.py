# What psycopg 3 makes of parameters without casts, and with those of cast.sql.
import os
import re
from decimal import Decimal

import psycopg

ID = "0f1e2d3c-4b5a-4978-8695-a4b3c2d1e0f9"
conn = psycopg.connect(os.environ["DATABASE_URL"], autocommit=True)


def say(what, sql, *values):
    try:
        print(f"{what}: {conn.execute(sql, values).fetchone()[0]}")
    except Exception as error:
        print(f"{what}: {str(error).splitlines()[0]}")


PURCHASE = """SELECT (onside_attribution.purchase(i, a, c)).payload ->> 'amount'
    FROM (SELECT %s::uuid i, %s::numeric a, %s::text c) s"""
say("cast", re.sub(r"\$\d", "%s", os.environ["CAST"]), ID, 9.9, "usd", "2026-05-05T12:00:00Z", 51, '{"sku": "gems"}')
say("float", "SELECT onside_attribution.track_purchase(%s, %s, %s)", ID, 9.9, "USD")
say("Decimal", PURCHASE, ID, Decimal("9.90"), "USD")
say("key", "SELECT onside_attribution.event_id('orders', %s)", 51)
say("dict", "SELECT onside_attribution.track('e', %s, %s)", ID, {"level": 7})
say("named", """SELECT (onside_attribution.purchase(%s, currency => 'USD', amount => %s)).payload ->> 'amount'""", ID, Decimal("9.90"))
