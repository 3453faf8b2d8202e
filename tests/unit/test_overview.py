"""What `spillway status` says on a line."""

from ops import overview


def test_what_is_set_aside_counts_as_waiting_and_not_as_a_consumer():
    consumers = [{"name": name, "pending": pending, "idle_ms": 3000}
                 for name, pending in (("consumer-00", 2), ("set-aside", 3), ("format-2", 4))]
    text = overview._consumers({"consumers": consumers})
    assert text.startswith("1 in the group, last active 3 s ago; consumer-00 holds 2; 7 set aside")
    assert overview._consumers({"consumers": consumers[1:]}).startswith("none at present")
