"""The entry point of `docferry` and `python -m docferry`."""

import gc
import os
import sys


def main() -> int:
    """Run the installed command and return its exit code."""
    _open_standard_streams()
    _use_utf8_paths()
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


def _use_utf8_paths() -> None:
    """Start Python again in its UTF-8 mode, unless it takes paths as UTF-8 already.

    The configuration is UTF-8, and so are the names that people give to folders. Under the C locale or Latin-1 Python
    would encode them otherwise, and not find them. Output keeps the locale's encoding, with escapes for the rest.
    """
    if sys.getfilesystemencoding().lower().replace("-", "") == "utf8":
        return
    encoding = sys.stdout.encoding if sys.stdout else "ascii"
    environment = {"PYTHONIOENCODING": f"{encoding}:backslashreplace"} | os.environ
    os.execve(sys.executable, [sys.executable, "-X", "utf8", *sys.orig_argv[1:]], environment)  # noqa: S606 - ourselves


if __name__ == "__main__":
    sys.exit(main())
