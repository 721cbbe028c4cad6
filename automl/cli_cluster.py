"""The options of commands that run on a Ray cluster."""

import argparse


def takes_address(parser: argparse.ArgumentParser) -> None:
    """The option that names a cluster; it counts wherever a command opens a session of Ray."""
    parser.add_argument(
        "--address",
        metavar="ADDRESS",
        dest="cluster",
        help="run on the Ray cluster at host:port, or 'auto' for the one that this machine is a node of (default: "
        "$RAY_ADDRESS, or else a Ray of its own)",
    )
