"""The documentation as a site: `python -m docs.site` builds it from the Markdown pages, `make docs` calls that.

The pages are those that a forge shows, at the same places beside each other, so a link that works there works here.
"""
