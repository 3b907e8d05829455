"""Start `docferry` and `python -m docferry`."""

import gc
import os
import sys

#: The time limit of all threads to end after everything else has ended, seconds.
LEFT_BEHIND_S = 1.0


def main() -> int:
    """Run the installed command and return its exit code."""
    _open_standard_streams()
    _use_utf8_paths()
    if sys.argv[1:] == ["lease-service"]:  # what docferry-lease.service runs; no command for people
        from docferry.files.lease_service import main as serve

        return serve()
    gc.disable()  # imported modules are permanent: skipping them in garbage collection saves a twelfth of the start
    # httpx would bring its own command line, with rich, click and pygments, wherever click happens to be installed.
    sys.modules["httpx._main"] = None  # type: ignore[assignment]  # None in sys.modules marks a module as missing
    # docferry uses no plugin of pydantic, which would look for one in every installed distribution: 5 ms.
    os.environ.setdefault("PYDANTIC_DISABLE_PLUGINS", "1")
    from docferry.cli.main import main as speak  # imported here to keep `--version` fast

    return _left_behind(speak(sys.argv[1:]))


def _left_behind(code: int) -> int:
    """Return the exit code, or end at once if a thread still hangs in a network share: Python would wait for it."""
    import threading  # imported here to keep `--version` fast
    import time
    from contextlib import suppress

    others = [each for each in threading.enumerate() if each is not threading.main_thread() and not each.daemon]
    end = time.monotonic() + LEFT_BEHIND_S
    for thread in others:
        thread.join(max(0.0, end - time.monotonic()))
    hanging = sorted({thread.name for thread in others if thread.is_alive()})
    if not hanging:
        return code
    from docferry import logs

    for name in hanging:
        logs.get("app").warning("thread_left", f"{name} does not answer: docferry ends without waiting for it")
    for stream in filter(None, (sys.stdout, sys.stderr)):
        with suppress(OSError, ValueError):
            stream.flush()
    os._exit(code)


def _open_standard_streams() -> None:
    """Open /dev/null for each closed standard stream, so that no file of docferry gets its number.

    `sys.stdout` stays None where it was closed: output is then reported as not written.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # the lowest free number is this one


def _use_utf8_paths() -> None:
    """Restart Python in its UTF-8 mode, unless it decodes paths as UTF-8 already.

    The configuration and the names of files are UTF-8. Under the C locale or Latin-1, Python would encode names
    differently and not find the files. Output keeps the encoding of the locale and escapes all other characters.
    """
    if sys.getfilesystemencoding().lower().replace("-", "") == "utf8":
        return
    encoding = sys.stdout.encoding if sys.stdout else "ascii"
    environment = {"PYTHONIOENCODING": f"{encoding}:backslashreplace"} | os.environ
    os.execve(sys.executable, [sys.executable, "-X", "utf8", *sys.orig_argv[1:]], environment)  # noqa: S606 - ourselves


if __name__ == "__main__":
    sys.exit(main())
