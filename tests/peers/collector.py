"""An OTLP collector that others wrote (rotel), started again whenever it ends. collector.py DIRECTORY SIGNAL

It takes gRPC at port 4317 and HTTP at 4318, and writes all that it was sent of SIGNAL (traces, metrics or logs) to DIRECTORY/telemetry. While DIRECTORY/away is there it is not
started; DIRECTORY/collector.pid names its process.
"""

import os
import pathlib
import subprocess
import sys
import time

import rotel

work = pathlib.Path(sys.argv[1])
agent = pathlib.Path(rotel.__file__).parent / "rotel-agent"
os.environ["NO_COLOR"] = "1"
words = ["start", "--exporter", "blackhole", "--otlp-grpc-endpoint", "0.0.0.0:4317", "--otlp-http-endpoint", "0.0.0.0:4318",
         "--debug-log", sys.argv[2], "--debug-log-verbosity", "detailed"]
while True:
    if (work / "away").exists():
        time.sleep(0.05)
        continue
    with open(work / "telemetry", "ab") as out:
        running = subprocess.Popen([agent, *words], stdout=out, stderr=subprocess.STDOUT)
    (work / "collector.pid").write_text(str(running.pid))
    running.wait()
    time.sleep(0.05)
