"""Closed forms and exact class distributions of Corollaries 1 to 3 of the paper."""
