"""A parsupd that is killed by SIGKILL just before, or after, it carries out its Nth effect.

`python dying_parsupd.py N before|after [parsupd's own arguments]`. With a path in COUNTED_FROM, effects count from when
there is such a file.
"""

import os
import signal
import sys
from typing import Any

from parsupd import app
from parsupd.executor import Executor

limit, when = int(sys.argv.pop(1)), sys.argv.pop(1)
begin = os.environ.pop("COUNTED_FROM", "")
done = 0
carry_out = Executor._carry_out


def counted(executor: Executor, effect: Any) -> None:
    global done
    if begin and not os.path.exists(begin):
        carry_out(executor, effect)
        return
    done += 1
    if done == limit and when == "before":
        os.kill(os.getpid(), signal.SIGKILL)
    carry_out(executor, effect)
    if done == limit and when == "after":
        os.kill(os.getpid(), signal.SIGKILL)


Executor._carry_out = counted  # type: ignore[method-assign]
app.main()
