"""Requests on kept connections and on new ones, until a file is there. load.py HOST PORT PATH FILE

Every tenth success of a thread is a line on standard error. What failed is told as JSON in the end.
"""

import http.client
import json
import os
import sys
import threading
import time

TIMEOUT = 10
PAUSE = 0.02
HOST, PORT, PATH, FILE = sys.argv[1], int(sys.argv[2]), sys.argv[3], sys.argv[4]
failures = []


def ask(connection):
    connection.request("GET", PATH)
    response = connection.getresponse()
    response.read()
    if response.status != 200:
        raise ValueError(f"{response.status} {response.headers.get('weft-error')}")


def keep_going(keep):
    connection = http.client.HTTPConnection(HOST, PORT, timeout=TIMEOUT)
    count = 0
    while not os.path.exists(FILE):
        try:
            ask(connection)
            count += 1
            if count % 10 == 0:
                sys.stderr.write(f"{'kept' if keep else 'new'} {count}\n")
        except Exception as e:
            failures.append(f"{'kept' if keep else 'new'} connection: {e!r} after {count}")
            connection.close()
        if not keep:
            connection.close()
        time.sleep(PAUSE)


threads = [threading.Thread(target=keep_going, args=[keep]) for keep in (True, True, False)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
print(json.dumps(failures))
