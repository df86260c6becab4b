"""The command `rallypoint`: its commands, and how any of them ends.

Each command has its own file and imports large modules only when it runs, so that `--version` and
`--help` answer at once.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Sequence
from typing import Annotated, Any

import typer

from rallypoint._version import __version__
from rallypoint.cli import (
    actions,
    bench,
    coordinators,
    demo,
    descriptors,
    doctor,
    env,
    events,
    examples,
    output,
    run,
    serve,
    simulate,
    status,
    token,
    wait,
)
from rallypoint.errors import ExitCode, RallypointError

_EXIT_CODES = (
    "Exit codes: 0 done, 1 the program failed, 2 usage, 3 the nodes could not meet or nobody "
    "answered, 4 the coordinator was lost, 5 too few nodes were left, 6 stopped, 7 evicted, "
    "128 + N by signal N."
)

app = typer.Typer(
    name="rallypoint",
    help="Elastic rendezvous for distributed Python jobs.",
    epilog=_EXIT_CODES,
    pretty_exceptions_enable=False,
    context_settings={
        # Users write torchrun's options with underscores as often as with dashes.
        "token_normalize_func": lambda name: name.replace("_", "-"),
        "help_option_names": ["-h", "--help"],
    },
)
for _module in (
    *(run, serve, status, wait, events, actions, coordinators, doctor, token, env, demo, simulate),
    *(bench, examples),
):
    _module.add_to(app)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run one command line (default: this process's own) and exit with its code."""
    descriptors.fill()
    sys.exit(exit_code_of(sys.argv[1:] if arguments is None else arguments))


def exit_code_of(arguments: Sequence[str]) -> int:
    """Run one command line and return its exit code; expected errors are printed on stderr."""
    output.set_log()
    try:
        code: Any = app(args=list(arguments), prog_name="rallypoint", standalone_mode=False)
        sys.stdout.flush()
    except RallypointError as error:
        output.print_failure(error)
        return int(error.exit_code)
    except _CommandLineError as error:
        return _usage(error)
    except (KeyboardInterrupt, typer.Abort):
        return 128 + 2
    except BrokenPipeError:
        return _reader_gone()
    except SystemExit as error:
        # If typer handles a broken pipe itself, it ends with 1, as if the program had failed.
        if not isinstance(error.__context__, BrokenPipeError):
            raise
        return _reader_gone()
    except OSError as error:
        if error.errno in descriptors.UNWRITABLE and error.filename is None:
            return _unwritable(error)
        return _refused_by_system(error)
    except (MemoryError, RuntimeError, ImportError) as error:
        return _refused_by_system(error)
    return code if isinstance(code, int) else ExitCode.DONE


# If typer has its own copy of click, this class has no public name, and its name differs between
# releases. It is the base of BadParameter's base.
_CommandLineError: Any = typer.BadParameter.__mro__[2]


def _usage(error: Any) -> int:
    context = getattr(error, "ctx", None)
    command = context.command_path if context is not None else "rallypoint"
    message = " ".join(error.format_message().split())  # typer writes each choice on its own line
    message = message.replace(": Value error, ", ": ")  # a word of the library that typer uses
    listed = "commands" if hasattr(getattr(context, "command", None), "commands") else "options"
    hint = _hint_of_setting(error) or f"`{command} --help` lists the {listed}"
    output.print_error(message.rstrip("."), hint)
    return ExitCode.USAGE


def _hint_of_setting(error: Any) -> str:
    """How to give a setting for which `rallypoint run` has no option of its own; "" otherwise."""
    from rallypoint import settings

    command = getattr(getattr(error, "ctx", None), "command", None)
    name = (getattr(error, "option_name", None) or "").lstrip("-").replace("-", "_")
    takes_set = any("--set" in each.opts for each in getattr(command, "params", ()))
    if not takes_set or not hasattr(error, "possibilities"):
        return ""
    is_setting = name in {each.name.removesuffix("_s") for each in settings.SETTINGS}
    return f"it is a setting: --set {name}=VALUE" if is_setting else ""


def _refused_by_system(error: Exception) -> int:
    """Handle an error of a limit of the system. Raises other errors again."""
    from rallypoint.cli import limits

    found = limits.refusal(error)
    if found is None:
        raise error
    output.print_failure(found)
    return found.exit_code


def _reader_gone() -> int:
    """The reader of stdout has stopped (`| head`): end without a message."""
    descriptors.abandon(sys.stdout.fileno())
    return 128 + 13


def _unwritable(error: OSError) -> int:
    """The output could not be written: the disk is full, or the device was removed."""
    descriptors.abandon(sys.stdout.fileno())
    output.print_error(
        f"the output cannot be written: {error.strerror or error}",
        "is its disk full?",
    )
    return ExitCode.PROGRAM_FAILED


def _print_version(asked: bool) -> None:
    if asked:
        print(f"rallypoint {__version__}")
        raise typer.Exit


@app.callback(invoke_without_command=True)
def _without_command(
    context: typer.Context,
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_print_version, is_eager=True, help="Print the version."
        ),
    ] = False,
) -> None:
    if context.invoked_subcommand is None:
        with contextlib.redirect_stdout(sys.stderr):  # if rich formats the help, it prints it
            print(context.get_help())
        raise typer.Exit(ExitCode.USAGE)
