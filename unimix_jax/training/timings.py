"""The wall time of the parts of a command."""

import contextlib
import time
from collections.abc import Iterator


class Clock:
    """Seconds of wall time by part; the time of a nested part counts for the nested part only."""

    def __init__(self) -> None:
        """Start to count for the part "rest"."""
        self.seconds: dict[str, float] = {}
        self._open = ["rest"]
        self._since = time.monotonic()

    @contextlib.contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Count the time inside of the context for a part, which may be opened several times."""
        self._count()
        self._open.append(name)
        try:
            yield
        finally:
            self._count()
            self._open.pop()

    def table(self) -> str:
        """Return the parts in the order in which they first ended, "rest" and the sum last; seconds."""
        self._count()
        rest = self.seconds.get("rest", 0.0)
        parts = {**{name: s for name, s in self.seconds.items() if name != "rest"}, "rest": rest}
        lines = [f"{name:<14}{seconds:>8.2f} s" for name, seconds in (parts | {"in all": sum(parts.values())}).items()]
        return "\n".join(lines)

    def _count(self) -> None:
        now = time.monotonic()
        name = self._open[-1]
        self.seconds[name] = self.seconds.get(name, 0.0) + now - self._since
        self._since = now
