"""The modules and commands of docs/extending.md, and arguments of short runs."""

import pathlib
import re
import shlex

TEXT = (pathlib.Path(__file__).resolve().parents[2] / "docs" / "extending.md").read_text()
MODULES = {match[1]: match[0] for match in re.finditer(r"# (my_\w+)\.py\n.*?(?=```)", TEXT, flags=re.S)}
COMMANDS = [shlex.split(block) for block in re.findall(r"```sh\n(.*?)```", TEXT, flags=re.S)]
SMALL_VIT = ["network=vit_s16"] + [
    f"network_options.{option}" for option in ("patch_size=4", "width=16", "depth=1", "heads=2")
]
DIGITS = ["main", "--config=digits_lt.py:method=unimix_bayias", "--config.epochs=1"]
# The random numbers of the mixer and of the augmentations are most of a program, and eight devices a part: they are
# left out where the network, the head or the measure is what is looked at.
SMALL_PROGRAM = ["--config.data.augment=", "--config.parallel.devices=1", "--config.eval_every=0"]
PLAIN = ["main", "--config=digits_lt.py:method=erm", "--config.epochs=1", *SMALL_PROGRAM]
