"""The way in: `docferry` and `python -m docferry`."""

import gc
import sys


def main() -> int:
    """What the installed command calls."""
    gc.disable()  # what is imported stays: to look for garbage in it is a twelfth of a start
    # httpx would bring its own command line, with rich, click and pygments, wherever click happens to be installed.
    sys.modules["httpx._main"] = None  # type: ignore[assignment]  # how Python is told that there is no such module
    from docferry.cli.main import main as speak  # here, so that `--version` pays for nothing it does not need

    return speak(sys.argv[1:])


if __name__ == "__main__":
    sys.exit(main())
