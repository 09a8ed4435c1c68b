# What Django's inspectdb sees.
import io
import re

exec(open("buy_django.py").read().split("class Order")[0])
from django.core.management import call_command

out = io.StringIO()
call_command("inspectdb", stdout=out)
print("tables:", " ".join(re.findall("db_table = '(.*)'", out.getvalue())))
