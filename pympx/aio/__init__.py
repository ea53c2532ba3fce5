"""Awaiting requests, calls and messages in asyncio, trio and anyio: the loop sleeps on one descriptor of the engine; nothing polls."""
