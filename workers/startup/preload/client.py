"""Stand-in for the Python executable: have the preloaded server fork and run this command, or run it plainly.

Started with -S -E, so that it imports next to nothing.
"""

import json
import os
import socket
import sys


def main() -> None:
    """Send the command line to the server and wait for its exit status; without a server, execute Python."""
    try:
        server = socket.socket(socket.AF_UNIX)
        server.connect(os.environ.get("LAYERSWEEP_PRELOAD_SOCKET", ""))
    except OSError:
        os.execv(sys.executable, [sys.executable, *sys.argv[1:]])
    request = json.dumps({"argv": sys.argv[1:], "environ": dict(os.environ), "cwd": os.getcwd()}).encode()
    socket.send_fds(server, [len(request).to_bytes(8, "big")], [0, 1, 2])
    server.sendall(request)
    status = server.recv(1)  # when the worker ends; should this process be killed first, the server kills the worker
    sys.exit(status[0] if status else 1)


main()
