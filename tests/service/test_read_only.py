"""The real service where nothing can be written, not even a temporary file."""

from __future__ import annotations

import json
import signal
import subprocess
import sys

import httpx

PROGRAM = """
import errno, os, sys

def refuse(event, arguments):
    writes = event == "open" and arguments[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
    if event == "os.mkdir" or (writes and arguments[0] != os.devnull):
        raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(arguments[0]))

sys.addaudithook(refuse)  # Python's own writes; a file system cannot be made read-only without rights
sys.argv = ["cma-clip", "serve", "--port", "0"]
from service.cli import main
main()
"""


def test_serving_writes_nothing() -> None:
    command = [sys.executable, "-c", PROGRAM]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:  # noqa: S603 - our own program
        assert process.stdout is not None
        try:
            lines = map(json.loads, process.stdout)
            port = next(line["port"] for line in lines if line["message"] == "listening")
            assert any(line["message"] == "ready" for line in lines), "it has ended instead"
            listing = {"title": "Red summer dress", "explain": True, "attributes": ["baseColour"]}
            reply = httpx.post(f"http://127.0.0.1:{port}/v1/classify", json=listing, timeout=60)
            assert reply.json()["attributes"]["baseColour"]["label"] == "Red"
            process.send_signal(signal.SIGINT)
            process.stdout.read()
            assert process.wait(30) == 0
        finally:
            process.kill()
