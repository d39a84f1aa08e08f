"""Composition roots: the only places where port names meet adapter names."""
