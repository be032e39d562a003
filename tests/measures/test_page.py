"""A page shows hostile names as they are, and nothing in it is fetched or run."""

import re

import pytest

from unimix_jax.measures import page
from unimix_jax.measures.report import Picture, Section
from unimix_jax.measures.tables import Table

HOSTILE = '<script>alert("x")</script>&amp;\'|_*`$'
PNG = b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR\0\0\x01\0\0\0\0\x10"


@pytest.fixture(scope="module")
def sections():
    table = Table(HOSTILE, [[HOSTILE, HOSTILE], [HOSTILE, HOSTILE]], HOSTILE)
    picture = Picture("reliability", HOSTILE, None)
    return [Section(HOSTILE, (HOSTILE,), (table, table._replace(folded=True)), (picture,))]


def test_html_is_escaped_wherever_a_name_can_stand(sections):
    text = page.html_page(HOSTILE, HOSTILE, sections, {"reliability": PNG})
    assert "<script" not in text
    escaped = "&lt;script&gt;alert(&quot;x&quot;)&lt;/script&gt;&amp;amp;&#x27;|_*`$"
    # title, h1, line below, link, h2, sentence, 2 tables of title, 4 cells and note, alt text, caption
    assert text.count(escaped) == 6 + 2 * 6 + 2
    assert set(re.findall(r'(?:src|href)="([^"]{1,5})', text)) == {"#part", "data:"}
    assert 'width="128"' in text


def test_markdown_is_escaped_wherever_a_name_can_stand(sections):
    text = page.markdown(HOSTILE, HOSTILE, sections, "figures")
    escaped = '&lt;script&gt;alert("x")&lt;/script&gt;&amp;amp;\'|\\_\\*\\`\\$'
    in_tables = text.count(escaped.replace("|", "\\|"))
    assert (text.count(escaped), in_tables) == (4 + 2 * 2 + 1, 2 * 4)
    assert "(figures/reliability.png)" in text
    assert "<script" not in text
