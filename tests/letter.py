"""Dead letters for tests, as consumers make them."""

import msgspec

from app import dead_letter, form, stream
from app.batch import new_id
from app.dead_letter import Death
from tests import journal

AT = "2026-01-31T12:00:00.000000Z"


def death(reason=dead_letter.SINK, detail="server closed the connection", sqlstate="57P01"):
    """Returns an end."""
    return Death(reason, detail, sqlstate, 3, AT, AT, "consumer-00")


def bury(client, one, reason=dead_letter.SINK, letter_id="*", **known):
    """Makes a letter of a batch or of one event of it, and returns its id."""
    fields = (*stream.fields_of(one), *death(reason, **known).fields())
    made = client.execute_command("XADD", stream.DEAD_LETTERS, letter_id, *fields).decode()
    if isinstance(one, dead_letter.LoneEvent):
        client.hset(stream.DEAD_EVENTS, dead_letter.event_name(one.batch_id, one.index), made)
    return made


def lone(one, index):
    """Returns one event of a batch."""
    return dead_letter.lone_event(one, index, one.payload.splitlines(keepends=True)[index])


def letters(client):
    """Returns all letters."""
    return [dead_letter.letter_of(*entry) for entry in client.xrange(stream.DEAD_LETTERS)]


def make_service_batch(*services, message="m"):
    """Returns a batch of an event a service; None: an event without one."""
    events = [{"message": message, "service": service} for service in services]
    text = msgspec.json.encode(events)
    return form.to_batch(form.FORMS["application/json"], text, [], new_id(), 10**18, journal.LIMITS)
