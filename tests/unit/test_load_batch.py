"""What the load posts: the same from the same seed, but for what must be new to a service that has seen it before."""

from random import Random

from loadtest.batch import Mix, make


def test_another_run_with_the_same_seed_has_other_keys_and_the_same_choices():
    mix = Mix(keyed=1.0, gzip=0.0, bad=0.0)
    one, other = (make(run, 3, mix, Random(7)) for run in ("one", "other"))
    assert one.headers["Idempotency-Key"] == one.tag != other.tag
    assert one.headers["Content-Type"] == other.headers["Content-Type"]
    again = make("one", 3, mix, Random(7))
    assert again.tag == one.tag
