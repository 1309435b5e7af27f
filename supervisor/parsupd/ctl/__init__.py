"""parsupctl: the command line of the daemon.

It starts often, so it starts fast: nothing here imports asyncio, and what only some commands need (the client, rich,
JSON) is imported inside the functions that need it.
"""
