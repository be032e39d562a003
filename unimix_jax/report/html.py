"""A report as one self-contained HTML file, and as Markdown.

Texts of a user (names of classes and runs, paths, values of a config) are escaped: markup, and characters that are
invisible.
"""

import base64
import html
import re
import urllib.parse

from unimix_jax.errors import printable
from unimix_jax.report.sections import Picture, Section
from unimix_jax.report.tables import Table, markdown_table

GENERATOR = "unimix_jax report"  # marks an HTML file as a report, which may be overwritten

_CSS = """
:root { color-scheme: light; --ink: #1f2937; --soft: #6b7280; --line: #e5e7eb; --accent: #0072b2; }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 76rem; padding: 1rem clamp(.8rem, 3vw, 2rem) 4rem; color: var(--ink);
  font: 15px/1.5 system-ui, sans-serif; background: #fff; }
h1 { font-size: 1.5rem; margin: .8rem 0 .2rem; overflow-wrap: anywhere; }
h2 { font-size: 1.15rem; margin: 2.2rem 0 .6rem; padding-bottom: .2rem; border-bottom: 2px solid var(--line); }
h3 { font-size: 1rem; margin: 1.2rem 0 .3rem; }
p { margin: .3rem 0; max-width: 70ch; overflow-wrap: anywhere; }
.soft, caption, figcaption { color: var(--soft); font-size: .87rem; }
nav { display: flex; flex-wrap: wrap; gap: .2rem 1rem; margin: .6rem 0; }
a { color: var(--accent); }
.scroll { overflow-x: auto; margin: .4rem 0; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { padding: .22rem .7rem; text-align: right; border-bottom: 1px solid var(--line); vertical-align: top; }
th { font-weight: 600; }
thead th { border-bottom: 2px solid var(--line); }
th:first-child, td:first-child { text-align: left; padding-left: 0; }
tbody th { font-weight: 400; overflow-wrap: break-word; max-width: 26rem; }
td { white-space: nowrap; }
table.facts :is(td, th) { text-align: left; white-space: normal; max-width: 46rem; overflow-wrap: anywhere; }
tbody tr:hover { background: #f3f4f6; }
summary { cursor: pointer; font-weight: 600; margin: .8rem 0 .2rem; }
.pictures { display: flex; flex-wrap: wrap; gap: 1rem 1.5rem; align-items: flex-start; }
figure { margin: .5rem 0; max-width: 100%; }
figure img { max-width: 100%; height: auto; display: block; }
"""


def html_document(title: str, about: str, sections: list[Section], images: dict[str, bytes]) -> str:
    """Return a report as one HTML file that contains its style and pictures and fetches nothing.

    Args:
      title: of the report.
      about: a line below it.
      sections: of `sections.of_one` or `of_many`.
      images: PNG files of the pictures, by name.

    Returns:
      The HTML text.
    """
    ids = [f"part-{i}" for i in range(1, len(sections) + 1)]
    links = "".join(f'<a href="#{i}">{_escaped(s.title)}</a>' for i, s in zip(ids, sections, strict=True))
    parts = "\n".join(_section(i, section, images) for i, section in zip(ids, sections, strict=True))
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta name="generator" content="{GENERATOR}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{_escaped(title)}</title>\n<style>{_CSS}</style>\n</head>\n<body>\n"
        f'<header>\n<h1>{_escaped(title)}</h1>\n<p class="soft">{_escaped(about)}</p>\n</header>\n'
        f"<nav>{links}</nav>\n<main>\n{parts}\n</main>\n</body>\n</html>\n"
    )


def markdown(title: str, about: str, sections: list[Section], folder: str) -> str:
    """Return a report as Markdown; pictures are links to `folder`/NAME.png."""
    lines = [f"# {_inline(title)}", "", _line(about), ""]
    for section in sections:
        lines += [f"## {_inline(section.title)}", ""]
        for sentence in section.text:
            lines += [f"- {_line(sentence)}"]
        lines += [""] if section.text else []
        for table in section.tables:
            rows = [[_inline(cell) for cell in row] for row in table.rows]
            shown = [markdown_table(rows), ""]
            shown += [_line(table.note), ""] if table.note else []
            if table.folded:
                lines += [f"<details><summary>{_escaped(table.title)}</summary>", "", *shown, "</details>", ""]
            else:
                lines += [f"### {_inline(table.title)}", "", *shown]
        quoted = urllib.parse.quote(folder, errors="surrogateescape")
        for picture in section.pictures:
            lines += [f"![{_inline(picture.caption)}]({quoted}/{picture.name}.png)", ""]
    return "\n".join(lines).rstrip("\n") + "\n"


def _section(identity: str, section: Section, images: dict[str, bytes]) -> str:
    text = "".join(f"<p>{_escaped(sentence)}</p>\n" for sentence in section.text)
    tables = "\n".join(map(_table, section.tables))
    pictures = "\n".join(_picture(picture, images[picture.name]) for picture in section.pictures)
    pictures = f'<div class="pictures">\n{pictures}\n</div>\n' if pictures else ""
    return f'<section id="{identity}">\n<h2>{_escaped(section.title)}</h2>\n{text}{pictures}{tables}\n</section>'


def _table(table: Table) -> str:
    head, *body = table.rows
    columns = "".join(f'<th scope="col">{_escaped(cell)}</th>' for cell in head)
    rows = "\n".join(
        f'<tr><th scope="row">{_escaped(row[0])}</th>{"".join(f"<td>{_escaped(c)}</td>" for c in row[1:])}</tr>'
        for row in body
    )
    kind = ' class="facts"' if head[1:] == ["value"] else ""
    content = f"<table{kind}>\n<thead><tr>{columns}</tr></thead>\n<tbody>\n{rows}\n</tbody>\n</table>"
    content = f'<div class="scroll">{content}</div>'
    note = f'\n<p class="soft">{_escaped(table.note)}</p>' if table.note else ""
    if table.folded:
        return f"<details>\n<summary>{_escaped(table.title)}</summary>\n{content}{note}\n</details>"
    return f"<h3>{_escaped(table.title)}</h3>\n{content}{note}"


def _picture(picture: Picture, content: bytes) -> str:
    caption = _escaped(picture.caption)
    data = base64.b64encode(content).decode()
    width = int.from_bytes(content[16:20], "big") // 2  # of the PNG, drawn twice as fine as shown
    return (
        f'<figure><img alt="{caption}" width="{width}" src="data:image/png;base64,{data}">'
        f"<figcaption>{caption}</figcaption></figure>"
    )


def _escaped(text: str) -> str:
    """Escape a user's text for HTML."""
    return html.escape(printable(text))


def _inline(text: str) -> str:
    """Escape a user's text for Markdown and HTML, for any place in a line but its beginning."""
    text = html.escape(" ".join(printable(text).split()), quote=False)
    text = re.sub(r"([\\`*_\[\]~$#@])", r"\\\1", text)
    return re.sub(r"(www)(\.)|(:)(//)", r"\1\3\\\2\4", text, flags=re.IGNORECASE)  # no link without its own markup


def _line(text: str) -> str:
    """Escape a user's text like `_inline`, also for the beginning of a line: it must not start a list or heading."""
    return re.sub(r"^(\d*)([-+=.)])", r"\1\\\2", _inline(text))
