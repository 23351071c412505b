"""``memwall explore``: the what-if explorer in the browser."""

from __future__ import annotations

import argparse
from typing import Any

from simulator.commands.arguments import count

PORT = 8501


def add(commands: Any) -> None:
    """Adds the command's parser."""
    parser = commands.add_parser(
        "explore",
        help="the what-if explorer in the browser",
        description="Serves the what-if explorer and opens it in the browser; to this machine only, unless --address says otherwise.",
        epilog="example: memwall explore --port 8600 --no-browser",
    )
    parser.add_argument(
        "--address", metavar="ADDRESS", default="127.0.0.1",
        help="where to listen (127.0.0.1); nobody is asked for a password",
    )  # fmt: skip
    parser.add_argument(
        "--port", metavar="N", type=count("port", most=65535), help=f"port (the first free one from {PORT})"
    )
    parser.add_argument("--no-browser", action="store_true", help="open no browser window")
    parser.set_defaults(run=run, needs=())


def run(args: argparse.Namespace) -> int:
    """Runs the command; returns the server's exit code."""
    import importlib.util
    import sys

    from simulator import catalog
    from simulator.errors import MemwallError

    if importlib.util.find_spec("streamlit") is None:
        raise MemwallError("explore needs Streamlit, which is not installed: pip install 'memwall[app]'")
    port = _free(args.address, args.port)
    if args.address not in ("127.0.0.1", "localhost", "::1"):
        print(f"Whoever reaches {args.address}:{port} can use the explorer: there is no password.", file=sys.stderr)
    from streamlit.web import cli

    from simulator.explorer import main as _pages  # noqa: F401  # so that nobody's first page waits for imports

    options = {**_options(), "server.address": args.address, "server.port": port}
    options["server.headless"] = args.no_browser
    flags = [f"--{name}={str(value).lower() if isinstance(value, bool) else value}" for name, value in options.items()]
    try:
        cli.main(["run", str(catalog.root() / "app.py"), *flags], prog_name="streamlit", standalone_mode=False)
    except SystemExit as done:
        return done.code if isinstance(done.code, int) else 0
    return 0


def _free(address: str, port: int | None) -> int:
    """`port`, or the first free one from `PORT`. Raises InputError where nobody can listen there."""
    import errno
    import socket

    from simulator.errors import InputError

    try:
        family = socket.getaddrinfo(address, None)[0][0]
    except OSError:
        raise InputError("address", address, "be an address of this machine", suggestion="127.0.0.1") from None
    for candidate in [port] if port is not None else range(PORT, PORT + 100):
        with socket.socket(family, socket.SOCK_STREAM) as tried:
            tried.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                tried.bind((address, candidate))
            except OSError as error:
                if error.errno == errno.EADDRNOTAVAIL:
                    rule = "be an address of this machine"
                    raise InputError("address", address, rule, suggestion="127.0.0.1") from None
                refused = error
                continue
            return candidate
    reason = refused.strerror or str(refused)
    raise InputError("port", port if port is not None else PORT, f"be free at {address} ({reason})")


def _options() -> dict[str, Any]:
    """The options of ``.streamlit/config.toml``, flat."""
    import tomllib

    from simulator import catalog

    def flat(table: dict[str, Any], lead: str = "") -> dict[str, Any]:
        found: dict[str, Any] = {}
        for name, value in table.items():
            found |= flat(value, f"{lead}{name}.") if isinstance(value, dict) else {f"{lead}{name}": value}
        return found

    return flat(tomllib.loads((catalog.root() / ".streamlit" / "config.toml").read_text(encoding="utf-8")))
