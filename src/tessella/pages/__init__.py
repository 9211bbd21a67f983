"""Rendering of result pages: self-contained HTML files, and text on a terminal."""
