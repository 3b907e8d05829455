"""Describe errors that end or prevent a watch, with the fix."""

from __future__ import annotations

from pathlib import Path

from docferry.model import escaped

_LIMITS = Path("/proc/sys/fs/inotify")

NOT_UTF8 = "a name in it is not UTF-8, which the watcher cannot report"


def is_watch_limit(error: Exception) -> bool:
    """Return whether the kernel has no inotify watch left for this user."""
    return "watch limit" in str(error)


def is_instance_limit(error: Exception) -> bool:
    """Return whether the kernel has no inotify instance left for this user, or the process no descriptor."""
    return "Too many open files" in str(error)


def is_undecodable(error: Exception) -> bool:
    """Return whether a running watcher failed at a name that is not UTF-8."""
    return "decode path" in str(error)


def diagnosis(error: Exception) -> str:
    """Return one sentence about an error of the watcher, with the fix if there is one."""
    text = str(error)
    if is_watch_limit(error):
        return (
            f"the kernel has no inotify watch left (the limit is {_limit('max_user_watches')}): raise it with "
            "`sysctl fs.inotify.max_user_watches=524288`"
        )
    if is_instance_limit(error):
        return (
            f"the kernel has no inotify instance left (the limit is {_limit('max_user_instances')}): raise it with "
            "`sysctl fs.inotify.max_user_instances=1024`, or the limit of open files, `ulimit -n`"
        )
    if is_undecodable(error):
        return NOT_UTF8
    if isinstance(error, UnicodeError):
        return "its own path is not UTF-8, which the watcher cannot take"
    if isinstance(error, PermissionError):
        return f"the watcher cannot read a folder in it ({escaped(text)}): let the user that runs docferry read it"
    return f"the watcher failed: {escaped(text) or type(error).__name__}"


def _limit(name: str) -> str:
    try:
        return (_LIMITS / name).read_text(encoding="ascii").strip()
    except OSError:
        return "unknown"
