"""seewhere: do vision-language models see *where*? Four papers, one set of pictures, boxes and metrics."""

__version__ = "0.1.0"
