# outbox_model.py, with the set-up of buy_django.py.
exec(open("buy_django.py").read().split("class Order")[0])
from django.utils import timezone

exec(open("outbox_model.py").read())
created = [Event.objects.create(event_name="e", payload={"level": 7}, installation_id=uuid.uuid4())]
print("recorded:", len(created))
