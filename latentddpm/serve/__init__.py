"""The command `serve`: a page that draws, the queue behind it, and its JSON API.

page, api ─► requests ─► jobs ─► runner ─► gallery
"""
