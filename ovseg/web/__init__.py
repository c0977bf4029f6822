"""``ovseg serve``: a web page and a REST endpoint over any model."""
