"""Renders a page as one self-contained HTML file."""

from __future__ import annotations

import base64
import io
from functools import cache
from importlib import resources
from pathlib import Path

from jinja2 import Environment, Template
from PIL.Image import Image

import tessella
from tessella.foundation.blocks import Page
from tessella.foundation.errors import on_command_line
from tessella.foundation.files import write_atomic
from tessella.foundation.text import shown
from tessella.pages.charts import draw_chart
from tessella.pages.command_lines import command_line


def html_page(page: Page) -> str:
    """Render a page as HTML, with untrusted text escaped."""
    text = _template().render(page=page, version=tessella.__version__)
    return "\n".join(map(shown, on_command_line(text).split("\n")))


def write_html(path: str | Path, page: Page) -> None:
    """Write a page as an HTML file, atomically."""
    text = html_page(page)
    write_atomic(Path(path), lambda draft: draft.write_text(text, "utf-8"))


@cache
def _template() -> Template:
    environment = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    environment.filters |= {
        "kind": lambda block: type(block).__name__,
        "uri": png_data_uri,
        "wav": wav_data_uri,
        "drawn": draw_chart,
        "line": command_line,
    }
    return environment.from_string(resources.files("tessella.pages").joinpath("page.html.jinja").read_text("utf-8"))


def png_data_uri(image: Image) -> str:
    """Encode an image as a `data:` URL."""
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return _data_uri("image/png", buffer.getvalue())


def wav_data_uri(audio: bytes) -> str:
    """Encode a WAV file as a `data:` URL."""
    return _data_uri("audio/wav", audio)


def _data_uri(media: str, content: bytes) -> str:
    return f"data:{media};base64,{base64.b64encode(content).decode('ascii')}"
