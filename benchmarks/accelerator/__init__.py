"""Everything that is to be known of this project on one GPU, in one command of nine minutes; see `command.py`."""
