"""The door to zlib: compressed payloads, which only stock Pyro5 peers send."""


def inflate(data: bytes, most: int) -> bytes:
    """Decompresses zlib data to at most `most` bytes, never to more, whatever the input claims. Raises ValueError."""
    import zlib  # noqa: PLC0415 - a tool that meets no compressed payload does not pay for it

    stream = zlib.decompressobj()
    try:
        plain = stream.decompress(data, most)
    except zlib.error as error:
        raise ValueError(str(error)) from None
    if not stream.eof:
        raise ValueError(f"it is cut off, or longer than {most} bytes")
    return plain
