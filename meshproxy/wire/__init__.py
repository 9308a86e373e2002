"""Bytes to messages and back, without I/O: what comes from a socket goes in, what goes to one comes out.

http1.py holds the heads of HTTP/1.1, http2.py the frames of a connection with hpack.py below it. Each refuses what is
malformed or ambiguous, with the answer its specification asks for.
"""
