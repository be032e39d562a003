"""Reports on predictions: evaluation, tables, plots, HTML and Markdown files."""
