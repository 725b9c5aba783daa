"""Figures and widgets: everything a reader looks at."""
