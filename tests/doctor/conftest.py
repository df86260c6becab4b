"""A command line to type at, coordinators, and programs that are no coordinators."""

from tests.cli.conftest import cli, listener, plain_environment, serve

__all__ = ["cli", "listener", "plain_environment", "serve"]
