"""A page shows hostile names as they are, and nothing in it is fetched or run."""

import re
from html.parser import HTMLParser

import markdown_it
import pytest

from unimix_jax.report.html import html_document, markdown
from unimix_jax.report.sections import Picture, Section
from unimix_jax.report.tables import Table

HOSTILE = '<script>alert("x")</script>&amp;\'|_*`$'
PNG = b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR\0\0\x01\0\0\0\0\x10"


@pytest.fixture(scope="module")
def sections():
    table = Table(HOSTILE, [[HOSTILE, HOSTILE], [HOSTILE, HOSTILE]], HOSTILE)
    picture = Picture("reliability", HOSTILE, None)
    return [Section(HOSTILE, (HOSTILE,), (table, table._replace(folded=True)), (picture,))]


def test_html_is_escaped_wherever_a_name_can_stand(sections):
    text = html_document(HOSTILE, HOSTILE, sections, {"reliability": PNG})
    assert "<script" not in text
    escaped = "&lt;script&gt;alert(&quot;x&quot;)&lt;/script&gt;&amp;amp;&#x27;|_*`$"
    # title, h1, line below, link, h2, sentence, 2 tables of title, 4 cells and note, alt text, caption
    assert text.count(escaped) == 6 + 2 * 6 + 2
    assert set(re.findall(r'(?:src|href)="([^"]{1,5})', text)) == {"#part", "data:"}
    assert 'width="128"' in text


def test_markdown_is_escaped_wherever_a_name_can_stand(sections):
    text = markdown(HOSTILE, HOSTILE, sections, "figures")
    escaped = '&lt;script&gt;alert("x")&lt;/script&gt;&amp;amp;\'|\\_\\*\\`\\$'
    in_tables = text.count(escaped.replace("|", "\\|"))
    # title, line below, heading, sentence, title and 2 notes of tables, alt text; the folded title is HTML
    assert (text.count(escaped), in_tables) == (4 + 1 + 2 + 1, 2 * 4)
    assert text.count("<summary>&lt;script&gt;alert(&quot;x&quot;)&lt;/script&gt;&amp;amp;&#x27;|_*`$</summary>") == 1
    assert "(figures/reliability.png)" in text
    assert "<script" not in text


# Names that Markdown, HTML, a terminal or a reader's eye could take for something else, and what is to be seen of them.
NAMES = {
    "# a": "# a",
    "C #": "C #",
    "- a": "- a",
    "+ a": "+ a",
    "1. a": "1. a",
    "2) a": "2) a",
    "===": "===",
    "---": "---",
    "> a": "> a",
    "[a](javascript:x)": "[a](javascript:x)",
    "![a](x)": "![a](x)",
    "<img src=x onerror=y>": "<img src=x onerror=y>",
    "<!-- a": "<!-- a",
    "</td></table>": "</td></table>",
    "</details>": "</details>",
    "http://a.b": "http://a.b",
    "www.a.b": "www.a.b",
    "a@b.c": "a@b.c",
    "<http://a.b>": "<http://a.b>",
    "&lt;": "&lt;",
    "a\\": "a\\",
    "**a** _b_ ~~c~~ `d`": "**a** _b_ ~~c~~ `d`",
    "a|b": "a|b",
    "a\\|b": "a\\|b",
    "\x1b[31ma\x00": "\\x1b[31ma\\x00",
    "a\n\n# b": "a\\n\\n# b",
    "a\r\tb": "a\\r\\tb",
    "a\u202eb": "a\\u202eb",
    "a\u2028b": "a\\u2028b",
    "a\ud800b": "a\\ud800b",
    "\u732b \u00e9": "\u732b \u00e9",
}


class Seen(HTMLParser):
    """The texts of a page, and the names of its elements."""

    def __init__(self, text):
        super().__init__()
        self.texts, self.tags, self.open = [], set(), 0
        self.feed(text)
        assert self.open == 0

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        self.open += tag not in ("meta", "img")
        self.texts += [value for name, value in attrs if name == "alt"]

    def handle_endtag(self, tag):
        self.open -= 1

    handle_startendtag = handle_starttag

    def handle_data(self, data):
        self.texts.append(data)


@pytest.mark.parametrize("name", NAMES)
def test_a_name_is_seen_as_it_is_in_every_place(name):
    table = Table(name, [[name, "value"], [name, name]], name)
    listed = [Section(name, (name,), (table, table._replace(folded=True)), (Picture("reliability", name, None),))]
    of_page = Seen(html_document(name, name, listed, {"reliability": PNG}))
    assert of_page.texts.count(NAMES[name]) == 6 + 2 * 5 + 2
    text = markdown(name, name, listed, "figures")
    text.encode()
    # What a reader of Markdown makes of it; GitHub's bare links, which this one lacks, are looked for in the text.
    rendered = Seen(markdown_it.MarkdownIt().enable("table").render(text))
    assert rendered.texts.count(NAMES[name]) == 3 + 1 + 2 * 4 + 2 + 1  # the folded title is one of them
    plain = {
        "h1",
        "h2",
        "h3",
        "p",
        "ul",
        "li",
        "img",
        "table",
        "thead",
        "tbody",
        "tr",
        "th",
        "td",
        "details",
        "summary",
    }
    assert rendered.tags == plain
    assert not re.search(r"https?://|www\.|[a-z]@", text.split("<summary>")[0])


def test_pictures_in_a_folder_of_any_name():
    listed = [Section("a", pictures=(Picture("reliability", "b", None),))]
    assert "![b](a%20%28b%29%5D%C3%A9%FF/reliability.png)" in markdown("a", "b", listed, "a (b)]\u00e9\udcff")
