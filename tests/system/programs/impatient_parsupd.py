"""A parsupd that waits for 0.3 s instead of 10 s before it says that SIGKILL has not ended a unit."""

from parsupd import app
from parsupd.core.unit_machine import stopping

stopping.KILL_PATIENCE_S = 0.3
app.main()
