# A TestCase of Django, which rolls back each test, in a copy of shop_template.
import sys
import unittest

exec(open("buy_django.py").read().split("class Order")[0])
settings.DATABASES["default"]["TEST"] = {"NAME": "test_shop", "TEMPLATE": "shop_template"}
from django.test import TestCase


class OrderTest(TestCase):
    def record(self):
        with connection.cursor() as cursor:
            cursor.execute("SELECT onside_attribution.track('e', gen_random_uuid(), '{}')")
            cursor.execute("SELECT count(*) FROM onside_attribution.pending")
            return cursor.fetchone()[0]

    def test_first(self):
        self.assertEqual(self.record(), 1)

    def test_second(self):
        self.assertEqual(self.record(), 1)


from django.test.runner import DiscoverRunner

runner = DiscoverRunner(verbosity=0)
databases = runner.setup_databases()
result = unittest.TextTestRunner(stream=sys.stderr).run(unittest.defaultTestLoader.loadTestsFromTestCase(OrderTest))
runner.teardown_databases(databases)
print("\noutcome: " + ("OK" if result.wasSuccessful() and result.testsRun == 2 else "failed"))
