"""Start the endpoint: ``python -m tests.endpoint --port 0 --script '{"latency_s": 0.2}'``.

The first line printed is ``listening on http://127.0.0.1:PORT/v1``. Ends on SIGTERM or Ctrl-C, and with
``--with-parent`` when its standard input closes, which happens when the parent process ends.
"""

from __future__ import annotations

import argparse
import asyncio
import signal
import sys

from aiohttp import web

from tests.endpoint.behaviour import Script, read_script
from tests.endpoint.server import Service


async def serve(script: Script, host: str, port: int, with_parent: bool) -> None:
    """Serve until told to stop."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    if with_parent:
        loop.add_reader(sys.stdin.fileno(), stop.set)  # nothing is ever sent: it becomes readable when it closes
    runner = web.AppRunner(
        Service(script).application(), access_log=None, handler_cancellation=True, shutdown_timeout=0.2
    )
    await runner.setup()
    site = web.TCPSite(runner, host, port, backlog=4096)
    await site.start()
    bound = runner.addresses[0][1]
    print(f"listening on http://{host}:{bound}/v1", flush=True)
    await stop.wait()
    await runner.cleanup()


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m tests.endpoint", description=__doc__)
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=0, help="0: a free one")
    parser.add_argument("--script", default="{}", help="JSON: fields of tests.endpoint.behaviour.Script")
    parser.add_argument("--with-parent", action="store_true", help="end when standard input closes")
    arguments = parser.parse_args()
    try:
        script = read_script(arguments.script)
    except ValueError as problem:
        parser.error(f"--script: {problem}")
    asyncio.run(serve(script, arguments.host, arguments.port, arguments.with_parent))


if __name__ == "__main__":
    main()
