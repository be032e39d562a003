"""The methods, as pure data: each row says what differs from `erm`. Imports nothing.

A row is a nested dict without lists, so that every leaf can be overridden on the command line:
`--config.method.stages.mixed.mixer.alpha=.8`.

    about          one line for people
    head           the network's last layer
    stages         by name, in order; each says what changes and when:
      begin        start as a fraction of the run
      loss         name of a function in methods/losses.py (or "module:function") and its options
      mixer        name of a function in methods/mixing.py, or "none", and its options
      partners     name of a rule in data/sampling.py, or "none", and its options

What a stage does not say it takes from the stage before it, the first one from `erm`. Naming
another function drops the options of the one before.
"""

ROWS = {
    "erm": {
        "about": "cross entropy on images as they come",
        "head": "linear",
        "stages": {
            "plain": {
                "begin": 0.0,
                "loss": {"name": "cross_entropy"},
                "mixer": {"name": "none"},
                "partners": {"name": "none"},
            },
        },
    },
    "unimix_bayias": {
        "about": "the paper: UniMix with inversely sampled partners, Bayias loss, no mixing from epoch 120 of 200",
        "stages": {
            "mixed": {
                "begin": 0.0,
                "loss": {"name": "bayias"},
                "mixer": {"name": "unimix", "alpha": 0.5, "wrap": True},
                "partners": {"name": "partners_by_class", "class_exponent": -1.0},
            },
            "plain": {"begin": 0.6, "mixer": {"name": "none"}, "partners": {"name": "none"}},
        },
    },
}
