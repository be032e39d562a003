"""Tables from measures. Text in, text out; no files."""


def table(rows: list[list[str]]) -> str:
    """Lay out rows of cells in columns, the first to the left, the others to the right; the first row is a head."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = [
        "  ".join([row[0].ljust(widths[0]), *(c.rjust(w) for c, w in zip(row[1:], widths[1:], strict=True))])
        for row in rows
    ]
    return "\n".join([lines[0], "-" * len(lines[0]), *lines[1:]])


def markdown_table(rows: list[list[str]]) -> str:
    """Lay out rows of cells as a Markdown table; the first row is the head, numbers stand to the right."""
    lines = [f"| {' | '.join(row)} |" for row in rows]
    rule = f"| --- |{' ---: |' * (len(rows[0]) - 1)}"
    return "\n".join([lines[0], rule, *lines[1:]])


def closing_table(metrics: dict) -> str:
    """Lay out what metrics.json holds: accuracy by group and calibration in per cent, a column a split.

    Splits are measured at the last step; the best evaluation, if there were any, is a column of its own.
    """
    splits = [name for name in ("test", "validation") if name in metrics]
    columns = [(f"{name}", metrics[name]) for name in splits]
    best = metrics.get("best")
    if best:
        columns.append((f"best {best['split']} (epoch {best['epoch']:g})", best))
    groups = metrics[splits[0]].get("groups")
    rows = [["per cent", *(name for name, _ in columns)]]
    for label, key in (
        ("accuracy", "accuracy"),
        (f"  many ({groups})", "many"),
        (f"  medium ({groups})", "medium"),
        (f"  few ({groups})", "few"),
        ("ECE", "ece"),
        ("MCE", "mce"),
    ):
        if any(key in values for _, values in columns):
            rows.append([label, *(_per_cent(values.get(key)) for _, values in columns)])
    rows.append(["images", *(str(values.get("images", "")) for _, values in columns)])
    return table(rows)


def _per_cent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.1f}"
