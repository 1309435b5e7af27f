"""Takes one sample, in a process of its own: `program.py SUBJECT CASE SECONDS` prints one number, as JSON."""

import json
import sys

import calls
import maps
import streams

if __name__ == "__main__":
    subject, case, seconds = sys.argv[1:]
    cases = {"calls": calls.CASES, "streams": streams.CASES, "maps": maps.CASES}[subject]
    print(json.dumps(cases[case](float(seconds))))
