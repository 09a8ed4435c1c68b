# What SQLAlchemy's text() makes of parameters without casts, and with those of cast.sql.
import os
import re

from sqlalchemy import create_engine, text

ID = "0f1e2d3c-4b5a-4978-8695-a4b3c2d1e0f9"
engine = create_engine(os.environ["DATABASE_URL"])


def say(what, sql, **values):
    try:
        with engine.begin() as conn:
            print(f"{what}: {conn.execute(text(sql), values).scalar_one()}")
    except Exception as error:
        print(f"{what}: {str(error).splitlines()[0]}")


say("cast", re.sub(r"\$(\d)", r":p\1", os.environ["CAST"]), p1=ID, p2=9.9, p3="usd", p4="2026-05-05T12:00:00Z", p5=51,
    p6='{"sku": "gems"}')
say("colons", "SELECT onside_attribution.track_purchase(:id::uuid, 9.90, 'USD')", id=ID)
say("dict", "SELECT onside_attribution.track('e', :id, :payload)", id=ID, payload={"level": 7})
