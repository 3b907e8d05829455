"""What ends a watch or keeps it from beginning, in words for the person who must act."""

from __future__ import annotations

from pathlib import Path

from docferry.model import escaped

_LIMITS = Path("/proc/sys/fs/inotify")


def is_watch_limit(error: Exception) -> bool:
    """The kernel has no watch left for this user."""
    return "watch limit" in str(error)


def is_undecodable(error: Exception) -> bool:
    """It was watching, and heard of a name that is not UTF-8."""
    return "decode path" in str(error)


def diagnosis(error: Exception) -> str:
    """One sentence with the cure, where there is one."""
    text = str(error)
    if is_watch_limit(error):
        return (
            f"the kernel has no inotify watch left (the limit is {_limit('max_user_watches')}): raise it with "
            "`sysctl fs.inotify.max_user_watches=524288`"
        )
    if "Too many open files" in text:
        return (
            f"the kernel has no inotify instance left (the limit is {_limit('max_user_instances')}): raise it with "
            "`sysctl fs.inotify.max_user_instances=1024`, or the limit of open files, `ulimit -n`"
        )
    if is_undecodable(error):
        return "a name in it is not UTF-8, which the watcher cannot report"
    if isinstance(error, UnicodeError):
        return "its own path is not UTF-8, which the watcher cannot take"
    if isinstance(error, PermissionError):
        return f"the watcher may not read a folder in it ({escaped(text)}): let the user that runs docferry read it"
    return f"the watcher failed: {escaped(text) or type(error).__name__}"


def _limit(name: str) -> str:
    try:
        return (_LIMITS / name).read_text(encoding="ascii").strip()
    except OSError:
        return "unknown"
