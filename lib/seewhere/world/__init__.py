"""The embedded world: a deterministic, executable source of pictures, boxes and language."""
