"""The entry point of `docferry` and `python -m docferry`."""

import gc
import os
import sys


def main() -> int:
    """Run the installed command and return its exit code."""
    _open_standard_streams()
    gc.disable()  # what is imported stays: to look for garbage in it is a twelfth of a start
    # httpx would bring its own command line, with rich, click and pygments, wherever click happens to be installed.
    sys.modules["httpx._main"] = None  # type: ignore[assignment]  # how Python is told that there is no such module
    from docferry.cli.main import main as speak  # here, so that `--version` pays for nothing it does not need

    return speak(sys.argv[1:])


def _open_standard_streams() -> None:
    """Open /dev/null for each closed standard stream, so that no file of ours gets its number.

    `sys.stdout` stays None where it was closed: what is printed there is reported as not written.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # the lowest free number is this one


if __name__ == "__main__":
    sys.exit(main())
