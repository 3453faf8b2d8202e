"""Requests that are wrong, ambiguous or at the edge of what is allowed, by what is special about them.

Each holds one event, or could be taken to; `FOLLOWER` is sent behind it. What a strict reader refuses is in `REFUSED`,
what it has to take is in `TAKEN`.
"""

EVENT = b'{"message":"m"}'
LINE = b"POST /ingest HTTP/1.1\r\n"
HOST = b"Host: x\r\n"
JSON = b"Content-Type: application/json\r\n"
SIZE = b"Content-Length: 15\r\n"
CHUNKS = b"f\r\n" + EVENT + b"\r\n0\r\n\r\n"
CODED = b"Transfer-Encoding: chunked\r\n"
FOLLOWER = LINE + HOST + JSON + b"Connection: close\r\n" + SIZE + b"\r\n" + EVENT

HEAD = LINE + HOST + JSON


def sized(*fields, line=LINE + HOST):
    """Returns a request with a body of Content-Length, and more fields."""
    return line + JSON + b"".join(fields) + SIZE + b"\r\n" + EVENT


def chunked(body, *fields, line=LINE + HOST):
    """Returns a request with a body in chunks as given, and more fields."""
    return line + JSON + b"".join(fields) + CODED + b"\r\n" + body


REFUSED = {
    # framing
    "TE and CL": chunked(CHUNKS, SIZE), "CL and TE": HEAD + SIZE + CODED + b"\r\n" + CHUNKS,
    "CL 0 and TE": HEAD + b"Content-Length: 0\r\n" + CODED + b"\r\n" + CHUNKS,
    "CL twice": sized(SIZE), "CL twice, different": sized(b"Content-Length: 3\r\n"),
    "CL list": sized().replace(b": 15", b": 15, 15"), "CL negative": sized().replace(b": 15", b": -15"),
    "CL plus": sized().replace(b": 15", b": +15"), "CL hex": sized().replace(b": 15", b": 0xf"),
    "CL underscore": sized().replace(b": 15", b": 1_5"), "CL empty": sized().replace(b": 15", b": "),
    "CL space inside": sized().replace(b": 15", b": 1 5"), "CL superscript": sized().replace(b": 15", b": 1\xb2"),
    "CL huge": sized().replace(b": 15", b": " + b"9" * 1000), "CL float": sized().replace(b": 15", b": 15.0"),
    "TE twice": chunked(CHUNKS, CODED), "TE chunked, chunked": chunked(CHUNKS).replace(b": ch", b": chunked, ch"),
    "TE chunked, identity": chunked(CHUNKS).replace(b": chunked", b": chunked, identity"),
    "TE identity": HEAD + b"Transfer-Encoding: identity\r\n\r\n" + EVENT,
    "TE xchunked": chunked(CHUNKS).replace(b": chunked", b": xchunked"),
    "TE gzip": chunked(CHUNKS).replace(b": chunked", b": gzip"),
    "TE gzip, chunked": chunked(CHUNKS).replace(b": chunked", b": gzip, chunked"),
    "TE quoted": chunked(CHUNKS).replace(b": chunked", b': "chunked"'),
    "TE vertical tab": chunked(CHUNKS).replace(b": chunked", b": \x0bchunked"),
    "TE with CR": chunked(CHUNKS).replace(b": chunked\r\n", b": chunked\r\r\n"),
    "TE empty": HEAD + b"Transfer-Encoding: \r\n\r\n" + EVENT,
    "TE in 1.0": chunked(CHUNKS, line=b"POST /ingest HTTP/1.0\r\n" + HOST),
    # lines
    "bare LF": sized().replace(b"\r\n", b"\n"), "LF behind the request line": sized().replace(b"1.1\r\n", b"1.1\n"),
    "LF behind a field": sized(b"X-A: 1\n"), "LF at the end": sized().replace(b"\r\n\r\n", b"\r\n\n"),
    "CR alone": sized(b"X-A: 1\rX-B: 2\r\n"), "CR behind a field": sized(b"X-A: 1\r"),
    "CR CR LF": sized(b"X-A: 1\r\r\n"), "LF CR": sized(b"X-A: 1\n\r"),
    "folded": sized(b"X-A: 1\r\n 2\r\n"), "folded by tab": sized(b"X-A: 1\r\n\t2\r\n"),
    "folded first": LINE + b" X-A: 1\r\n" + HOST + JSON + SIZE + b"\r\n" + EVENT,
    "folded CL": HEAD + b"Content-Length:\r\n 15\r\n\r\n" + EVENT,
    # fields
    "space before colon": sized(b"X-A : 1\r\n"),
    "space before colon of CL": HEAD + b"Content-Length : 15\r\n\r\n" + EVENT,
    "tab before colon": sized(b"X-A\t: 1\r\n"), "no colon": sized(b"X-A\r\n"), "no name": sized(b": 1\r\n"),
    "name with space": sized(b"X A: 1\r\n"), "name with NUL": sized(b"X\0A: 1\r\n"),
    "name latin": sized(b"X\xc3: 1\r\n"),
    "name in brackets": sized(b"(X): 1\r\n"), "name with slash": sized(b"X/A: 1\r\n"),
    "value with NUL": sized(b"X-A: \0\r\n"), "value with BEL": sized(b"X-A: a\x07b\r\n"),
    "value with DEL": sized(b"X-A: a\x7fb\r\n"), "value with ESC": sized(b"X-A: \x1b[31m\r\n"),
    "value with VT": sized(b"X-A: a\x0bb\r\n"), "value with FF": sized(b"X-A: a\x0cb\r\n"),
    "Content-Type twice": sized(JSON), "Host twice": sized(HOST), "Host twice, different": sized(b"Host: y\r\n"),
    "no Host": sized(line=LINE), "Expect": sized(b"Expect: 200-maybe\r\n"),
    # request line
    "0.9": b"POST /ingest\r\n\r\n", "no version": b"POST /ingest\r\n" + HOST + SIZE + b"\r\n" + EVENT,
    "1.2": sized(line=b"POST /ingest HTTP/1.2\r\n" + HOST), "2.0": sized(line=b"POST /ingest HTTP/2.0\r\n" + HOST),
    "1.10": sized(line=b"POST /ingest HTTP/1.10\r\n" + HOST), "01.1": sized(line=b"POST /ingest HTTP/01.1\r\n" + HOST),
    "http": sized(line=b"POST /ingest http/1.1\r\n" + HOST), "FTP": sized(line=b"POST /ingest FTP/1.1\r\n" + HOST),
    "RTSP": sized(line=b"POST /ingest RTSP/1.0\r\n" + HOST), "ICE": sized(line=b"SOURCE /ingest ICE/1.0\r\n" + HOST),
    "two spaces": sized(line=b"POST  /ingest HTTP/1.1\r\n" + HOST),
    "tab": sized(line=b"POST\t/ingest\tHTTP/1.1\r\n" + HOST),
    "space behind target": sized(line=b"POST /ingest  HTTP/1.1\r\n" + HOST),
    "space at the end": sized(line=b"POST /ingest HTTP/1.1 \r\n" + HOST),
    "space at the start": sized(line=b" POST /ingest HTTP/1.1\r\n" + HOST),
    "space in target": sized(line=b"POST /in gest HTTP/1.1\r\n" + HOST),
    "NUL in target": sized(line=b"POST /ingest\0 HTTP/1.1\r\n" + HOST),
    "latin target": sized(line=b"POST /ingest?\xe9 HTTP/1.1\r\n" + HOST),
    "authority": sized(line=b"POST x:80 HTTP/1.1\r\n" + HOST), "asterisk": sized(line=b"POST * HTTP/1.1\r\n" + HOST),
    "relative target": sized(line=b"POST ingest HTTP/1.1\r\n" + HOST),
    "backslash target": sized(line=b"POST \\ingest HTTP/1.1\r\n" + HOST),
    "broken URI": sized(line=b"POST http://[x/ingest HTTP/1.1\r\n" + HOST),
    "lower-case method": sized(line=b"post /ingest HTTP/1.1\r\n" + HOST),
    "mixed method": sized(line=b"Post /ingest HTTP/1.1\r\n" + HOST),
    "unknown method": sized(line=b"PUBLISH /ingest HTTP/1.1\r\n" + HOST),
    "long method": sized(line=b"P" * 40 + b" /ingest HTTP/1.1\r\n" + HOST),
    "method with bracket": sized(line=b"P(ST /ingest HTTP/1.1\r\n" + HOST),
    "HTTP/2 preface": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    "TLS": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n",
    "LF first": b"\n" + sized(), "CR first": b"\r" + sized(), "NUL first": b"\0" + sized(),
    "BOM": b"\xef\xbb\xbf" + sized(),
    "two empty lines first": b"\r\n\r\n" + sized(),
    # limits
    "long target": sized(line=b"POST /ingest?" + b"a" * 3000 + b" HTTP/1.1\r\n" + HOST),
    "endless line": b"POST /" + b"a" * 70_000, "endless name": LINE + b"a" * 200_000,
    "endless fields": LINE + HOST + b"X-A: 1\r\n" * 30_000,
    "long value": sized(b"X-A: " + b"a" * 5000 + b"\r\n"), "41 fields": sized(b"X-A: 1\r\n" * 40),
    # chunks
    "size -f": chunked(CHUNKS.replace(b"f", b"-f", 1)), "size +f": chunked(CHUNKS.replace(b"f", b"+f", 1)),
    "size 0xf": chunked(CHUNKS.replace(b"f", b"0xf", 1)), "size g": chunked(CHUNKS.replace(b"f", b"g", 1)),
    "size empty": chunked(b"\r\n" + CHUNKS), "size with space": chunked(CHUNKS.replace(b"f", b"f ", 1)),
    "size after space": chunked(b" " + CHUNKS), "size with underscore": chunked(CHUNKS.replace(b"f", b"0_f", 1)),
    "size with NUL": chunked(CHUNKS.replace(b"f", b"f\0", 1)), "size of 17 digits": chunked(b"1" + b"0" * 15 + CHUNKS),
    "size of 10,000 zeros": chunked(b"0" * 10_000 + CHUNKS),
    "LF behind size": chunked(CHUNKS.replace(b"f\r\n", b"f\n", 1)),
    "CR behind size": chunked(CHUNKS.replace(b"f\r\n", b"f\r", 1)),
    "LF behind data": chunked(CHUNKS.replace(b"}\r\n", b"}\n", 1)),
    "nothing behind data": chunked(CHUNKS.replace(b"}\r\n", b"}")),
    "longer than its size": chunked(CHUNKS.replace(b"f", b"e", 1)),
    "shorter than its size": chunked(CHUNKS.replace(b"f", b"10", 1)),
    "extension with LF": chunked(CHUNKS.replace(b"f", b"f;a\n", 1)),
    "extension with CR": chunked(CHUNKS.replace(b"f", b"f;a\rb", 1)),
    "extension with NUL": chunked(CHUNKS.replace(b"f", b"f;a\0", 1)),
    "extension without name": chunked(CHUNKS.replace(b"f", b"f;", 1)),
    "extension unquoted": chunked(CHUNKS.replace(b"f", b'f;a="b', 1)),
    "endless extension": chunked(b"f;" + b"a" * 70_000),
    "LF for the last": chunked(CHUNKS.replace(b"0\r\n\r\n", b"0\n\n")),
    "trailer CL": chunked(CHUNKS[:-2] + b"Content-Length: 3\r\n\r\n"),
    "trailer TE": chunked(CHUNKS[:-2] + CODED + b"\r\n"),
    "trailer Host": chunked(CHUNKS[:-2] + HOST + b"\r\n"), "trailer without colon": chunked(CHUNKS[:-2] + b"X\r\n\r\n"),
    "trailer with LF": chunked(CHUNKS[:-2] + b"X: 1\n\r\n\r\n"),
    "trailer with NUL": chunked(CHUNKS[:-2] + b"X: \0\r\n\r\n"),
    "trailer folded": chunked(CHUNKS[:-2] + b"X: 1\r\n 2\r\n\r\n"),
    "trailer, space": chunked(CHUNKS[:-2] + b"X : 1\r\n\r\n"),
    "endless trailer": chunked(CHUNKS[:-2] + b"X: 1\r\n" * 40_000),
}

TAKEN = {
    "plain": sized(), "one empty line first": b"\r\n" + sized(), "1.0": sized(line=b"POST /ingest HTTP/1.0\r\n"),
    "absolute": sized(line=b"POST http://x/ingest HTTP/1.1\r\n" + HOST), "latin value": sized(b"X-A: \xe9\xff\r\n"),
    "tab in value": sized(b"X-A: a\tb\r\n"), "empty value": sized(b"X-A:\r\n"),
    "spaces around": sized(b"X-A: \t a \t \r\n"),
    "CL with spaces": sized().replace(b": 15", b":  15 "), "CL with zeros": sized().replace(b": 15", b": 0015"),
    "a field twice": sized(b"X-A: 1\r\nX-A: 2\r\n"),
    "upper-case coding": chunked(CHUNKS).replace(b": chunked", b": CHUNKED"),
    "escaped path": sized(line=b"POST /%69ngest HTTP/1.1\r\n" + HOST), "chunked": chunked(CHUNKS),
    "upgrade": sized(b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQAAP__\r\n"),
    "websocket": sized(b"Connection: Upgrade\r\nUpgrade: websocket\r\n"),
    "empty Host": sized(line=LINE + b"Host: \r\n"),
    "underscore": sized(b"Content_Length: 3\r\nTransfer_Encoding: chunked\r\n"),
    "Expect": sized(b"Expect: 100-Continue\r\n"),
    "upper-case size": chunked(CHUNKS.replace(b"f", b"F", 1)),
    "size with zeros": chunked(CHUNKS.replace(b"f", b"000f", 1)),
    "extensions": chunked(CHUNKS.replace(b"f", b'f ; a ;b=c; d="e\\"f"', 1)), "40 fields": sized(b"X-A: 1\r\n" * 37),
    "trailer": chunked(CHUNKS[:-2] + b"X-A: 1\r\nX-B:\r\n\r\n"),
    "chunks of a byte": chunked(b"".join(b"1\r\n%c\r\n" % byte for byte in EVENT) + b"0\r\n\r\n"),
}
