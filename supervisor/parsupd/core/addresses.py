"""Where the daemon is reached, and its objects: what both the daemon and its clients must know."""

SOCKET = "parsupd.sock"
"""The socket's name in the runtime directory."""

SUPERVISOR = "parsup.Supervisor"
NAME_SERVER = "Pyro.NameServer"
