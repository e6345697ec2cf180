"""Headless Chromium, driven over its DevTools protocol; page tests use it where it is installed."""

from __future__ import annotations

import asyncio
import base64
import shutil
import subprocess
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import aiohttp

NAME = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
STARTS_S = 60


class Tab:
    """An open page. ``complaints``: messages of the console, log and loader; ``asked``: requested addresses."""

    def __init__(self, socket: aiohttp.ClientWebSocketResponse) -> None:
        self._socket = socket
        self._number = 0
        self.complaints: list[str] = []
        self.asked: list[str] = []

    async def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Send a command and return its result; record events that arrive meanwhile."""
        self._number += 1
        await self._socket.send_json({"id": self._number, "method": method, "params": parameters})
        while True:
            message = await self._socket.receive_json()
            if message.get("id") == self._number:
                assert "error" not in message, message
                return message["result"]
            self._note(message)

    async def wait_for(self, method: str) -> None:
        """Wait for an event."""
        while True:
            message = await self._socket.receive_json()
            self._note(message)
            if message.get("method") == method:
                return

    async def tell(self, expression: str) -> Any:
        """Evaluate a JavaScript expression in the page."""
        result = await self.call("Runtime.evaluate", expression=expression, returnByValue=True)
        assert "exceptionDetails" not in result, result
        return result["result"].get("value")

    async def press_tab(self) -> None:
        """Press the Tab key."""
        for kind in ("keyDown", "keyUp"):
            await self.call("Input.dispatchKeyEvent", type=kind, key="Tab", code="Tab", windowsVirtualKeyCode=9)

    async def open(self, path: Path) -> None:
        """Load a file and wait until it has loaded completely."""
        for domain in ("Page", "Runtime", "Log", "Network"):
            await self.call(f"{domain}.enable")
        await self.call("Page.navigate", url=path.as_uri())
        await self.wait_for("Page.loadEventFired")

    async def colours(self, scheme: str) -> None:
        """Emulate the preferred colour scheme, "light" or "dark"."""
        await self.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])

    async def picture(self, path: Path, width: int, height: int) -> None:
        """Save a PNG of the top of the page."""
        await self.call(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False
        )
        shot = await self.call("Page.captureScreenshot", format="png")
        path.write_bytes(base64.b64decode(shot["data"]))

    def _note(self, message: dict[str, Any]) -> None:
        parameters = message.get("params", {})
        match message.get("method"):
            case "Runtime.consoleAPICalled" | "Runtime.exceptionThrown" | "Log.entryAdded":
                self.complaints.append(str(parameters))
            case "Network.requestWillBeSent":
                self.asked.append(parameters["request"]["url"])


def look(path: Path, folder: Path, what: Callable[[Tab], Awaitable[None]]) -> None:
    """Open ``path`` in a new browser with its profile in ``folder``, and call ``what`` with the tab."""
    assert NAME is not None
    options = [
        "--headless=new",
        "--no-sandbox",
        "--disable-gpu",
        "--remote-debugging-port=0",
        "--disable-dev-shm-usage",
    ]
    command = [NAME, *options, f"--user-data-dir={folder}", "about:blank"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        asyncio.run(_look(path, _port(folder / "DevToolsActivePort", process), what))
    finally:
        process.terminate()
        process.wait(STARTS_S)


async def _look(path: Path, port: int, what: Callable[[Tab], Awaitable[None]]) -> None:
    async with aiohttp.ClientSession() as session:
        async with session.get(f"http://127.0.0.1:{port}/json/list") as answer:
            (target,) = [one for one in await answer.json() if one["type"] == "page"]
        async with session.ws_connect(target["webSocketDebuggerUrl"], max_msg_size=0) as socket:
            tab = Tab(socket)
            await tab.open(path)
            await what(tab)


def _port(file: Path, process: subprocess.Popen) -> int:
    """Wait for the browser to listen and return its port."""
    end = time.monotonic() + STARTS_S
    while time.monotonic() < end and process.poll() is None:
        if file.is_file() and (lines := file.read_text().splitlines()):
            return int(lines[0])
        time.sleep(0.1)
    raise AssertionError(f"the browser did not start (exit status {process.poll()})")
