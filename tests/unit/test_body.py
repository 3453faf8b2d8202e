"""Bodies are read whole and decompressed whole, within bounds, or refused; a hostile one costs no memory."""

import gzip
import io
import tracemalloc
import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app import body
from app.body import zstd
from app.errors import NotDurable, Rejected
from tests.sample import steady

MIB = 1 << 20
SLICE = 1 << 18


def bare_deflate(data):
    compressor = zlib.compressobj(wbits=-zlib.MAX_WBITS)
    return compressor.compress(data) + compressor.flush()


COMPRESSED = [
    pytest.param("gzip", gzip.compress, id="gzip"), pytest.param("deflate", zlib.compress, id="zlib"),
    pytest.param("deflate", bare_deflate, id="bare deflate"), pytest.param("zstd", zstd.compress, id="zstd"),
]


class Trickle(io.BytesIO):
    """Gives a byte at a time, as a slow client does."""

    def read(self, size=-1):
        return super().read(min(1, size))


def read(sent, length, max_bytes=100, stream=io.BytesIO):
    held = []
    taken = body.read(stream(sent), length, max_bytes, held.append)
    assert sum(held) == len(taken)
    return taken


def refusal(call, *args):
    with pytest.raises(Rejected) as caught:
        call(*args)
    return caught.value.status, caught.value.cause


@pytest.mark.parametrize("stream", [io.BytesIO, Trickle])
@pytest.mark.parametrize("sent", [b"", b"a", b"a" * 100])
def test_a_body_is_read_whole_by_its_length_and_without_one(sent, stream):
    assert read(sent, len(sent), stream=stream) == read(sent, None, stream=stream) == sent


def test_no_more_is_read_than_content_length_says():
    assert read(b"abcNEXT", 3) == b"abc"


@pytest.mark.parametrize(("sent", "length", "status"), [
    (b"abc", 4, (400, "truncated")), (b"", 1, (400, "truncated")), (b"a" * 99, 100, (400, "truncated")),
    (b"a" * 101, 101, (413, "too_large")), (b"a" * 101, None, (413, "too_large")), (b"a", 10**12, (400, "truncated")),
    (b"a" * 500, 10**12, (413, "too_large")),
])
def test_a_body_that_is_short_or_over_the_limit_is_refused(sent, length, status):
    assert refusal(read, sent, length) == status


def test_what_comes_over_the_limit_is_dropped_so_that_the_client_gets_to_read_the_answer():
    stream = io.BytesIO(b"a" * 350)
    assert refusal(body.read, stream, 350, 100, lambda size: None) == (413, "too_large")
    assert stream.tell() == 350


def test_reading_ends_where_there_is_no_room_to_hold_more():
    def hold(size):
        raise NotDurable("inflight", "full")

    stream = io.BytesIO(b"a" * MIB)
    with pytest.raises(NotDurable):
        body.read(stream, MIB, MIB, hold)
    assert stream.tell() < MIB


@pytest.mark.parametrize("encoding", ["", "identity"])
def test_a_body_without_encoding_is_as_it_was_sent(encoding):
    assert body.decompress(b"\x1f\x8b", encoding, 1) == b"\x1f\x8b"


@pytest.mark.parametrize(("encoding", "compress"), COMPRESSED)
@steady
@given(pieces=st.lists(st.binary(max_size=200), min_size=1, max_size=5))
def test_all_members_of_a_compressed_body_are_read(encoding, compress, pieces):
    sent = b"".join(map(compress, pieces))
    assert body.decompress(sent, encoding, 10_000) == b"".join(pieces)


@pytest.mark.parametrize(("encoding", "compress"), COMPRESSED)
def test_a_compressed_body_cut_at_any_byte_is_refused(encoding, compress):
    sent = compress(b"one line\n" * 20)
    for size in range(1, len(sent)):
        assert refusal(body.decompress, sent[:size], encoding, MIB)[0] == 422, size


@pytest.mark.parametrize(("encoding", "compress"), COMPRESSED)
def test_what_follows_a_compressed_body_is_refused(encoding, compress):
    assert refusal(body.decompress, compress(b"a") + b"garbage", encoding, MIB)[0] == 422


@pytest.mark.parametrize(("encoding", "compress"), COMPRESSED)
def test_the_limit_is_exact_and_counts_all_members(encoding, compress):
    assert body.decompress(compress(b"a" * 600) + compress(b"a" * 400), encoding, 1000) == b"a" * 1000
    over = compress(b"a" * 600) + compress(b"a" * 401)
    assert refusal(body.decompress, over, encoding, 1000) == (413, "too_large")


@pytest.mark.parametrize(("encoding", "compress"), COMPRESSED)
def test_a_bomb_costs_no_more_memory_than_the_limit(encoding, compress):
    bomb = compress(bytes(64 * MIB))
    tracemalloc.start()
    try:
        assert refusal(body.decompress, bomb, encoding, MIB) == (413, "too_large")
        assert tracemalloc.get_traced_memory()[1] < 8 * MIB
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("compress", [gzip.compress, zlib.compress, zstd.compress])
@pytest.mark.parametrize("encoding", ["gzip", "deflate", "zstd"])
def test_a_wrong_label_is_refused(encoding, compress):
    sent = compress(b"a" * 100)
    try:
        assert body.decompress(sent, encoding, MIB) == b"a" * 100
    except Rejected as error:
        assert (error.status, error.cause) in ((422, "encoding"), (422, "truncated"))


@pytest.mark.parametrize("encoding", ["br", "compress", "gzip, gzip", "x", "\xff", "g" * 10_000])
def test_an_unknown_encoding_is_refused(encoding):
    assert refusal(body.decompress, b"a", encoding, MIB) == (415, "encoding")


def test_thousands_of_members_are_read_and_more_refused():
    member = gzip.compress(b"a")
    assert body.decompress(member * 4096, "gzip", MIB) == b"a" * 4096
    assert refusal(body.decompress, member * 4097, "gzip", MIB) == (422, "encoding")


def test_a_zstd_window_beyond_what_every_decoder_supports_is_refused():
    options = {zstd.CompressionParameter.window_log: 27, zstd.CompressionParameter.enable_long_distance_matching: 1}
    compressor = zstd.ZstdCompressor(options=options)
    sent = compressor.compress(bytes(range(256)) * 100) + compressor.flush()
    assert refusal(body.decompress, sent, "zstd", MIB) == (422, "encoding")


@pytest.mark.parametrize(("encoding", "compress"), COMPRESSED)
@pytest.mark.parametrize("size", [0, 1, SLICE - 1, SLICE, SLICE + 1, 3 * SLICE, 8 * MIB + 7])
def test_a_body_is_decompressed_in_slices_between_which_others_have_their_turn(encoding, compress, size):
    text = (b"%09d " % 7 * (size // 10 + 1))[:size]
    sizes = []
    sent = compress(text) + compress(b"more") + compress(text)

    def pause():
        sizes.append(tracemalloc.get_traced_memory()[0])

    tracemalloc.start()
    try:
        assert body.decompress(sent, encoding, 32 * MIB, pause) == text + b"more" + text
    finally:
        tracemalloc.stop()
    assert all(later - earlier < 2 * SLICE for earlier, later in zip(sizes, sizes[1:]))
    assert len(sizes) >= 2 * size // SLICE - 2
