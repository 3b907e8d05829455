"""One thread that watches a group of folders, and gets up again after everything that ends a watch."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

from docferry.clock import Clock
from docferry.files.ailments import diagnosis, is_watch_limit
from docferry.files.judge import OPTIONS, Judge, Lookout
from docferry.files.posts import Armed, Degraded, Lost, Post, by_place, identity, report

CHECK = 2.0  # seconds between two looks at whether the roots are still what they were
TRIAL = 10.0  # seconds between two questions to the kernel whether it has watches left: each is a thread and an inotify
GATHER = 0.02  # seconds in which folders that come together are armed together


class Pulse:
    """What the watcher asks at every step whether to stop: so it shows that the thread is alive and armed."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self.beat = clock.steady()
        self.stopped = False  # for good: the thread was given up, or nobody wants it any more
        self.changed = threading.Event()  # posts came or went
        self.on_armed: Callable[[], None] | None = None

    def is_set(self) -> bool:
        self.beat = self._clock.steady()
        armed, self.on_armed = self.on_armed, None
        if armed is not None and not self.stopped:
            armed()
        return self.stopped or self.changed.is_set()


class Sentry:
    """A thread that exists while there are posts. `guard` and `leave` may be called from any thread."""

    def __init__(self, clock: Clock, look_out: Lookout) -> None:
        self._clock = clock
        self._look_out = look_out
        self._judge = Judge(clock, look_out)
        self._lock = threading.Lock()
        self._posts: list[Post] = []
        self._pulse = Pulse(clock)
        self._thread: threading.Thread | None = None
        self._next_check = 0.0
        self._next_trial = 0.0
        self._limit_reached = False
        self._replaced = 0

    def __len__(self) -> int:
        return len(self._posts)

    @property
    def beat(self) -> float:
        """Steady seconds of its latest sign of life."""
        return self._pulse.beat

    @property
    def patience(self) -> int:
        """How many times longer than usual to wait for one: threads that hang on a dead share must not pile up."""
        return int(2 ** min(self._replaced, 7))

    def guard(self, post: Post) -> None:
        """Watch this too."""
        with self._lock:
            self._posts.append(post)
            self._pulse.changed.set()
            if self._thread is None:
                self._start()

    def leave(self, post: Post) -> threading.Thread | None:
        """No longer watch this; the thread when it ends for want of posts, to be joined."""
        with self._lock:
            self._posts.remove(post)
            self._pulse.changed.set()
            return None if self._posts else self._thread

    def replace(self, beat: float) -> None:
        """Give up a thread that has shown no life since `beat`, and start another."""
        with self._lock:
            if not self._posts or self._pulse.beat != beat:
                return
            self._pulse.stopped = True
            self._replaced += 1
            self._pulse = Pulse(self._clock)
            posts = list(self._posts)
            self._start()
        for post in posts:
            post.tell(Lost("the watcher hung and was started again"))

    def _start(self) -> None:
        """A daemon thread: one that hangs in the kernel must not hold up the end of the program."""
        self._thread = threading.Thread(target=self._run, args=(self._pulse,), name="docferry watch", daemon=True)
        self._thread.start()

    # -- in the thread -------------------------------------------------------------------------------------------

    def _run(self, pulse: Pulse) -> None:
        while True:
            time.sleep(GATHER)  # mappings start together, and arming one by one would walk them all each time
            with self._lock:
                if pulse.stopped:
                    return
                if not self._posts:
                    self._thread = None
                    return
                pulse.changed.clear()
                posts = list(self._posts)
            ready = [post for post in posts if self._is_ready(post)]
            if ready:
                self._watch(posts, ready, pulse)
            else:
                pulse.is_set()
                pulse.changed.wait(CHECK / 2)

    def _is_ready(self, post: Post) -> bool:
        """Whether it can be armed now; a missing root is said once."""
        if self._clock.steady() < post.retry_at:
            return False
        post.identity = identity(post.root)
        if post.identity is None:
            if not post.missing:
                post.missing = True
                post.tell(Lost("the folder is missing; it is watched again as soon as it is there"))
            return False
        post.missing = False
        post.place = os.path.realpath(post.root)
        return True

    def _watch(self, posts: Sequence[Post], ready: Sequence[Post], pulse: Pulse) -> None:
        armed = False

        def on_armed() -> None:
            nonlocal armed
            armed = True
            self._replaced = 0
            for post in ready:
                post.tell(Armed())

        pulse.on_armed = on_armed
        for post in ready:
            post.began = self._clock.steady()
        self._next_check = self._clock.steady() + CHECK
        self._next_trial = self._next_check  # a tree just armed may have taken the last
        self._limit_reached = False
        places = by_place(ready)
        try:
            for changes in self._look_out(*places, stop_event=pulse, **OPTIONS):
                if pulse.stopped:
                    return
                report(places, changes)
                if self._is_disturbed(posts, ready, changes):
                    return
        except Exception as error:  # noqa: BLE001 - whatever ended the watch, it must be taken up again
            if pulse.stopped:
                return
            pulse.on_armed = None  # if it never was, the next sign of life is another's
            if armed:
                self._judge.died(ready, error)
            else:
                self._judge.unarmed(ready, error)

    def _is_disturbed(self, posts: Sequence[Post], ready: Sequence[Post], changes: set[tuple[Any, str]]) -> bool:
        """Whether the watch must be set up anew: a root is not what it was, or another one can be watched now."""
        places = {post.place for post in ready}
        if any(kind == 3 and path in places for kind, path in changes):  # 3: deleted, or renamed away
            return True
        now = self._clock.steady()
        if changes:
            self._next_trial = now  # a new folder among them may have gone without a watch
        if now < self._next_check:
            return False
        self._next_check = now + CHECK
        replaced = [post for post in ready if identity(post.root) != post.identity]
        for post in replaced:
            post.tell(Lost("another folder stands in its place, or none"))
        if replaced or self._gains(posts, ready, now):
            return True
        if now < self._next_trial:
            return False
        self._next_trial = now + TRIAL
        return self._frees_up(ready)

    def _gains(self, posts: Sequence[Post], ready: Sequence[Post], now: float) -> bool:
        out = (post for post in posts if post not in ready and now >= post.retry_at and identity(post.root))
        return any(self._is_ready(post) and self._judge.can_be_armed(post) for post in out)

    def _frees_up(self, ready: Sequence[Post]) -> bool:
        """When the kernel has no watch left, a new folder goes unwatched without a word: so one is asked for."""
        error = self._judge.trial(ready[0], recursive=False)
        reached = error is not None and is_watch_limit(error)
        if reached and error is not None and not self._limit_reached:
            for post in ready:
                post.tell(Degraded(diagnosis(error)))
        freed = self._limit_reached and not reached
        self._limit_reached = reached
        return freed
