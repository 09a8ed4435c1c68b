# A model of the outbox: what SQLAlchemy needs to write it.
import os
import uuid

from sqlalchemy import Column, DateTime, Text, create_engine, func
from sqlalchemy.dialects.postgresql import JSONB, UUID
from sqlalchemy.orm import Session, declarative_base

Base = declarative_base()


class Event(Base):
    __tablename__ = "outbox"
    __table_args__ = {"schema": "onside_attribution"}
    event_id = Column(UUID(as_uuid=True), primary_key=True, default=uuid.uuid4)
    event_name = Column(Text)
    payload = Column(JSONB)
    event_datetime = Column(DateTime(timezone=True), server_default=func.now())
    installation_id = Column(UUID(as_uuid=True))


with Session(create_engine(os.environ["DATABASE_URL"])) as session, session.begin():
    session.add(Event(event_name="e", payload={"level": 7}, installation_id=uuid.uuid4()))
print("recorded: 1")
