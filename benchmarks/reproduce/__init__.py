"""Every table and figure of the paper by one command: see __main__.py."""
