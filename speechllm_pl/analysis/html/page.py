"""What the pages about runs and about data have in common: one self-contained file, headed, with linked sections."""

from collections.abc import Iterable
from html import escape

from speechllm_pl.analysis.html.style import STYLE_SHEET


def html_page(kind: str, name: str, kicker: str, introduction: str, sections: Iterable[tuple[str, str, str]]) -> str:
    """The whole page.

    Args:
        kind: stands before `name`, in the title and the heading.
        name: of what the page is about, as plain text.
        kicker: what stands above the heading.
        introduction: HTML between the heading and the links to sections.
        sections: id, title, and content as HTML.
    """
    sections, name = list(sections), escape(name)
    links = "".join(f'<a href="#{id_}">{title}</a>' for id_, title, _ in sections)
    body = "".join(
        f'<section id="{id_}" aria-labelledby="{id_}-title"><h2 id="{id_}-title">{title}</h2>{content}</section>'
        for id_, title, content in sections
    )
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        '<meta name="color-scheme" content="light dark">'
        f"<title>{kind} {name}</title><style>{STYLE_SHEET}</style></head><body>"
        f'<header><p class="kicker">{kicker}</p><h1>{kind} <em>{name}</em></h1>'
        f'{introduction}<nav aria-label="Sections">{links}</nav></header>'
        f"<main>{body}</main></body></html>\n"
    )
