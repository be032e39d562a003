"""Words for messages: short lists of names, and counts."""

import collections


def few(names: list[str]) -> str:
    """Return the first three names, and how many more there are.

    Args:
      names: at least one.

    Example:
      >>> few(["a", "b", "c", "d"])
      'a, b, c and 1 more'
    """
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def counted(counts: collections.Counter) -> str:
    """Return what was counted with its numbers, the most frequent first.

    Args:
      counts: by name; a count of 0 is left out.

    Example:
      >>> counted(collections.Counter({".txt": 1, ".heic": 2}))
      '2 .heic, 1 .txt'
    """
    return ", ".join(f"{count} {name}" for name, count in counts.most_common() if count)
