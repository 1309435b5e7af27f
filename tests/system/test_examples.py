"""Each program in etc/examples runs, says what it is meant to say, and leaves nothing."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
from support import wait_until
from test_spawn import workers_of

EXAMPLES = Path(__file__).parents[2] / "etc" / "examples"

# What each prints; `...` stands for any text.
SAID = {
    "add_numbers": "0 + ... + 10 = 55\n0 + ... + 1000 = 500500\n0 + ... + 1000000 = 500000500000\n",
    "alternative_init": "Hello Ada, from a worker that was started with 'internal worker'\n",
    "async_log": """\
from the start: ['the oven is cold', 'bread 1 of 3', 'bread 2 of 3', 'bread 3 of 3']
from now on:    ['bread 1 of 3', 'bread 2 of 3', 'bread 3 of 3', 'cake 1 of 1']
""",
    "direct_pipe": """\
the first, written before the function has returned
tick 0
tick 1
tick 2
tick 3
the writer was told: given up by the caller: four are enough
""",
    "executor": """\
   1048575: 41
...
 536870911: 2089
remainders: [59049, 297623, 664323]
refused by its types, before it ran: largest_prime_factor: argument n: Expected `int`, got `str`
""",
    "map_reduce": """\
in order: [0, 1, 7, 2, 5, 8, 16, 3, 19, 6]
3 processes have worked in two places
found: ... takes ... steps
combined in order: 123456789012345678901234567890
steps up to 10000: 849666
""",
    "number_stats": "200000 numbers, mean 0.500, variance 0.083...\nexpected       mean 0.500, variance 0.0833\n",
    "reverse_pipe": "1007 after 56 values\nthe source is closed\n",
    "serve": """\
ada has connected, as user ...
bob has connected, as user ...
41 for ada
42 for bob
the object itself is at hand, too: 42
""",
    "side_arg": """\
worker 0 knows 3 prices
2 in all
8 in all
10 in all
worker 0 knows 3 prices
item 0 (['scone']): KeyError: 'scone'
""",
    "spawn_in_foreground": """\
[WORKER printer STDOUT]: HELLO
[WORKER printer STDOUT]: HELLO2
it ended with 0
the other one lost its connection: closed by the peer
and ended with 137 for the signal
""",
    "state": """\
snapshot: {'tea': 3, 'coffee': 7}
change:   {'tea': 3, 'coffee': 7, 'cake': 1}
change:   {'tea': 0, 'coffee': 7, 'cake': 1}
""",
    "stream_workers": "even numbers: 25005000, odd numbers: 25000000\n",
    "workers_as_masters": "primes below 20000: 2262\n",
}
ARGUMENTS = {"alternative_init": ["greet", "Ada"]}


def test_every_example_is_run() -> None:
    """Nothing lies in the folder that the test below does not run."""
    assert {path.stem for path in EXAMPLES.glob("*.py")} == set(SAID)


@pytest.mark.parametrize("name", SAID)
def test_an_example_says_what_it_shows(name: str) -> None:
    """It exits with 0, writes nothing to stderr, and its workers are gone."""
    command = [sys.executable, str(EXAMPLES / f"{name}.py"), *ARGUMENTS.get(name, [])]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd="/") as process:
        out, error = process.communicate(timeout=50)
    assert (process.returncode, error) == (0, "")
    # Workers write to the same stdout: lines of different processes may come in another order.
    shown, said = (sorted(text.splitlines()) if name == "side_arg" else text.splitlines() for text in (out, SAID[name]))
    pattern = re.escape("\n".join(said)).replace(r"\.\.\.", ".*")
    assert re.fullmatch(pattern, "\n".join(shown), re.DOTALL), out
    wait_until(lambda: not workers_of(process.pid), what="the end of its workers")


def test_the_expert_example_tells_how_it_is_used() -> None:
    """Without a command it prints its usage and exits with 2."""
    command = [sys.executable, str(EXAMPLES / "alternative_init.py")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "usage: alternative_init.py greet NAME\n"
