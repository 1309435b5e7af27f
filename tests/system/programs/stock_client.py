"""A client that knows Pyro5 only: `stock_client.py SOCKET SERIALIZER FILE` prints what it found as JSON."""

import json
import sys

import Pyro5.api
import Pyro5.errors

socket, serializer, file = sys.argv[1:]
Pyro5.api.config.SERIALIZER = serializer


def error_of(call):
    try:
        call()
    except Exception as error:
        return error
    raise AssertionError("no error")


with Pyro5.api.Proxy(f"PYRO:Pyro.NameServer@./u:{socket}") as names:
    uri = names.lookup("corpus@1")
    found = {
        "names": names.list(),
        "by_tag": sorted(names.yplookup(meta_all=["unit:corpus"])),
        "uri": str(uri),
        "uri_type": f"{type(uri).__module__}.{type(uri).__qualname__}",
    }
    error = error_of(lambda: names.lookup("no such name"))
    found["no_such_name"] = f"{type(error).__module__}.{type(error).__qualname__}"

with Pyro5.api.Proxy(uri) as corpus:
    found["count"] = corpus.count(file)
    found["count_all"] = corpus.count_all([file, file])
    found["count_each"] = list(corpus.count_each([file, file]))
    if serializer != "marshal":  # Pyro5 5.17 cannot encode a batch with it: it asks None for its items
        batch = Pyro5.api.BatchProxy(corpus)
        batch.count(file)
        batch.count(file)
        found["batch"] = list(batch())
    error = error_of(lambda: corpus.count(5))
    found["wrong_argument"] = [type(error).__name__, str(error), "".join(getattr(error, "_pyroTraceback", []))]
    found["no_such_function"] = type(error_of(lambda: corpus.coutn(file))).__name__

print(json.dumps(found))
