"""The recipes of methods, as pure data: each one says what differs from `erm`. Imports nothing.

A recipe is a nested dict without lists, so that every leaf can be overridden on the command line:
`--config.method.stages.mixed.mixer.alpha=.8`.

    about           one line for people
    head            the network's last layer: linear, scaled, cosine (or "module:Class")
    posthoc         name of a function in methods/posthoc.py, or "none", and its options
    config          fields of the whole run
    by_data         the same grammar again, by data set ("cifar10"), data set and imbalance ("cifar10_50"), or
                    data set and recipe of its config file ("inat2018_paper"), for what differs there
    stages          by name; each says what changes and when, and goes on from the one that begins before it:
      begin           start as a fraction of the run; 1.0 for a stage after it, of `epochs`
      epochs          length of a stage after the run
      loss            name of a function in methods/losses.py (or "module:function") and its options
      mixer           name of a function in methods/mixing.py, or "none", and its options
      pair_sampler    name of a function in data/pairs.py, or "none", and its options
      sampler         name of a function in data/sampling.py: instance_balanced, class_balanced
      class_weight    name of a function in priors.py, or "none", and its options
      reduction       the divisor of a sum of weighted losses: weights (their sum) or count
      lr_multipliers  factors of the learning rate for backbone, classifier, scale; 0 freezes
      batch_norm      train, or frozen: the network runs as in evaluation, with the running statistics as they are, and
                      without dropout and drop path
      reinitialise    draw the classifier anew when the stage begins
      schedule        run (config.optim; its last rate for a stage after the run), or name of a function in
                      training/schedules.py (or "module:function") and its options, such as learning_rate

A stage takes everything else from the stage before it, the first one from `erm`. Naming another function drops the
options of the one before: `registry.inherit`.
"""

# Entries of a stage, and functions by entry, that had another name before; config.json of older runs has them.
NEW_ENTRIES = {"order": "sampler", "partners": "pair_sampler", "trains": "lr_multipliers"}
NEW_FUNCTIONS = {"sampler": {"natural": "instance_balanced", "balanced": "class_balanced"}}

_NO_MIXING = {"mixer": {"name": "none"}, "pair_sampler": {"name": "none"}}
_STOP_MIXING = {"begin": 0.6, **_NO_MIXING}  # epoch 120 of 200
_REWEIGHTED = {"begin": 0.8, "class_weight": {"name": "effective_number_weights", "beta": 0.9999}}  # 160 of 200
_PERMUTED = {"pair_sampler": {"name": "permutation"}}
_UNIMIX = {
    "mixer": {"name": "unimix", "alpha": 0.5, "wrap": True},
    "pair_sampler": {"name": "by_class", "class_exponent": -1.0},
}
# On these sets UniMix keeps the alpha of mixup and Remix (supplement, E, without a number); theirs is 1 (C.1).
_UNIMIX_BY_DATA = {
    f"{data}_paper": {"stages": {"mixed": {"mixer": {"alpha": 1.0}}}} for data in ("imagenet_lt", "inat2018")
}
_MIXUP = {"mixer": {"name": "mixup", "alpha": 1.0, "per_example": False}, **_PERMUTED}
_REMIX = {"mixer": {"name": "remix", "alpha": 1.0, "kappa": 3.0, "threshold": 0.5}, **_PERMUTED}
_CUTMIX = {"name": "cutmix", "alpha": 1.0, "probability": 0.5, "per_example": False}  # its authors' on CIFAR
_CUTMIX_BY_DATA = {  # theirs on ImageNet
    data: {"stages": {"mixed": {"mixer": {"probability": 1.0}}}} for data in ("imagenet_lt", "inat2018", "places_lt")
}
# CMO, naver-ai/cmo: its weights 1 / count are those of images, so that a class is drawn as count * 1 / count: each
# alike, the class exponent 1 - weighted_alpha = 0. It mixes where 3 < epoch < 200 - 3, counted from 0.
_CMO = {"mixer": _CUTMIX, "pair_sampler": {"name": "by_class", "class_exponent": 0.0}}
_LDAM = {"loss": {"name": "ldam", "max_margin": 0.5}}
_LAS = {"name": "label_aware_smoothing", "head": 0.3, "tail": 0.0, "shape": "concave", "power": 2.0, "formula": "code"}

# MiSLAS: ten epochs of the classifier alone after the run, with label-aware smoothing.
_SMOOTHED = {
    "begin": 1.0,
    "epochs": 10,
    "loss": _LAS,
    **_NO_MIXING,
    "sampler": {"name": "class_balanced"},
    "lr_multipliers": {"backbone": 0.0, "classifier": 0.5, "scale": 1.0},
    "batch_norm": "frozen",
    "schedule": {"name": "cosine", "learning_rate": 0.1},
}


def _smoothed(head: float, tail: float, batch_norm: str, factor: float) -> dict:
    """Return the changes of the second stage of MiSLAS for a data set and imbalance."""
    changes = {"loss": {"head": head, "tail": tail}, "batch_norm": batch_norm, "lr_multipliers": {"classifier": factor}}
    return {"stages": {"smoothed": changes}}


_SMOOTHED_BY_DATA = {
    "cifar10_10": _smoothed(0.1, 0.0, "frozen", 0.2),
    "cifar10_50": _smoothed(0.2, 0.0, "frozen", 0.2),
    "cifar10": _smoothed(0.3, 0.0, "frozen", 0.5),
    "cifar100_10": _smoothed(0.2, 0.0, "train", 0.1),
    "cifar100_50": _smoothed(0.3, 0.0, "train", 0.1),
    "cifar100": _smoothed(0.4, 0.1, "train", 0.2),
    "imagenet_lt": _smoothed(0.3, 0.0, "train", 0.05),
    "inat2018": _smoothed(0.3, 0.0, "train", 0.05),
    "places_lt": _smoothed(0.4, 0.1, "train", 0.05),  # MiSLAS: the statistics of the last block only
}
_MISLAS_BY_DATA = _SMOOTHED_BY_DATA | {  # on photographs it mixes less
    data: {"stages": {**_SMOOTHED_BY_DATA[data]["stages"], "mixed": {"mixer": {"alpha": 0.2}}}}
    for data in ("imagenet_lt", "inat2018", "places_lt")
}

RECIPES = {
    "erm": {
        "about": "cross entropy on images as they come",
        "head": "linear",
        "posthoc": {"name": "none"},
        "stages": {
            "plain": {
                "begin": 0.0,
                "epochs": 0,
                "loss": {"name": "cross_entropy"},
                **_NO_MIXING,
                "sampler": {"name": "instance_balanced"},
                "class_weight": {"name": "none"},
                "reduction": "weights",
                "lr_multipliers": {"backbone": 1.0, "classifier": 1.0, "scale": 0.0},
                "batch_norm": "train",
                "reinitialise": False,
                "schedule": {"name": "run"},
            },
        },
    },
    "mixup": {
        "about": "pairs of a batch mixed with one share; plain images from 120/200 of the run",
        "stages": {"mixed": _MIXUP, "plain": _STOP_MIXING},
    },
    "manifold_mixup": {
        "about": "mixup at the input or behind the first or second stage, drawn each step",
        "stages": {"mixed": {"mixer": {"name": "manifold_mixup", "alpha": 1.0}, **_PERMUTED}, "plain": _STOP_MIXING},
    },
    "cutmix": {
        "about": "CutMix: a box of another image pasted in, labels by area",
        "stages": {"mixed": {"mixer": _CUTMIX, **_PERMUTED}},
        "by_data": _CUTMIX_BY_DATA,
    },
    "cmo": {
        "about": "context-rich minority oversampling: CutMix with boxes of class-balanced images, 4/200 to 197/200",
        "stages": {"start": {}, "mixed": {"begin": 0.02, **_CMO}, "plain": {"begin": 0.985, **_NO_MIXING}},
    },
    "remix": {
        "about": "mixup whose label goes to the rarer class where the other is three times as frequent",
        "stages": {"mixed": _REMIX, "plain": _STOP_MIXING},
    },
    "mixup_drw": {
        "about": "mixup, then re-weighted classes from 160/200: as strong as the paper's method in others' tables",
        "stages": {"mixed": _MIXUP, "plain": _STOP_MIXING, "reweighted": _REWEIGHTED},
    },
    "remix_drw": {
        "about": "Remix, then re-weighted classes from 160/200",
        "stages": {"mixed": _REMIX, "plain": _STOP_MIXING, "reweighted": _REWEIGHTED},
    },
    "focal": {
        "about": "focal loss on softmax, gamma 1",
        "stages": {"plain": {"loss": {"name": "focal", "gamma": 1.0}}},
    },
    "cb": {
        "about": "cross entropy weighted by the effective number of images",
        "stages": {"plain": {"class_weight": {"name": "effective_number_weights", "beta": 0.9999}}},
    },
    "cb_drw": {
        "about": "cross entropy, weighted by the effective number of images from 160/200",
        "stages": {"plain": {}, "reweighted": _REWEIGHTED},
    },
    "cdt": {
        "about": "class-dependent temperatures, in training only",
        "stages": {"plain": {"loss": {"name": "cdt", "gamma": 0.2}}},
    },
    "ldam": {
        "about": "label-distribution-aware margins on a cosine classifier of scale 30",
        "head": "cosine",
        "stages": {"plain": _LDAM},
    },
    "ldam_drw": {
        "about": "LDAM, weighted by the effective number of images from 160/200",
        "head": "cosine",
        "stages": {"plain": _LDAM, "reweighted": _REWEIGHTED},
    },
    "logit_adjustment": {
        "about": "cross entropy of logits + log prior; equals bayias for a uniform test prior",
        "stages": {"plain": {"loss": {"name": "logit_adjustment", "strength": 1.0}}},
    },
    "balanced_softmax": {
        "about": "logit adjustment at strength 1 by its other name",
        "stages": {"plain": {"loss": {"name": "balanced_softmax"}}},
    },
    "logit_adjustment_posthoc": {
        "about": "cross entropy; log prior is subtracted from the trained model's logits",
        "posthoc": {"name": "logit_adjustment", "strength": 1.0},
        "stages": {"plain": {}},
    },
    "las": {
        "about": "label-aware smoothing in one stage: labels of frequent classes are smoothed more",
        "stages": {"plain": {"loss": _LAS}},
        "by_data": {"cifar100": {"stages": {"plain": {"loss": {"head": 0.4, "tail": 0.1}}}}},
    },
    "smote": {
        "about": "class-balanced images put between two neighbours of one class",
        "stages": {
            "plain": {
                "mixer": {"name": "smote"},
                "pair_sampler": {"name": "nearest", "neighbours": 5},
                "sampler": {"name": "class_balanced"},
            }
        },
    },
    "unimix": {
        "about": "UniMix: each pair with a factor of its own, partners inversely sampled, cross entropy",
        "stages": {"mixed": _UNIMIX, "plain": _STOP_MIXING},
        "by_data": _UNIMIX_BY_DATA,
    },
    "bayias": {
        "about": "the Bayias loss: cross entropy of logits + log(train prior / test prior)",
        "stages": {"plain": {"loss": {"name": "bayias"}}},
    },
    "unimix_bayias": {
        "about": "the paper: UniMix and the Bayias loss, no mixing from 120/200 of the run",
        "stages": {"mixed": {"loss": {"name": "bayias"}, **_UNIMIX}, "plain": _STOP_MIXING},
        "by_data": _UNIMIX_BY_DATA,
    },
    "unimix_bayias_code": {
        "about": "as the authors released it: partners from the batch, alpha .8, batch 64 on CIFAR, mixing to the end",
        "stages": {
            "mixed": {
                "loss": {"name": "bayias"},
                "mixer": {"name": "unimix", "alpha": 0.8, "wrap": True},
                "pair_sampler": {"name": "in_batch", "image_exponent": -0.5},
            },
        },
        "by_data": {
            "cifar10": {"config": {"batch_size": 64}},
            "cifar100": {
                "config": {"batch_size": 64},
                "stages": {"mixed": {"pair_sampler": {"image_exponent": -0.1}}},
            },
        },
    },
    "mislas": {
        "about": "mixup to the end, then ten epochs of the classifier with label-aware smoothing",
        "head": "scaled",
        "config": {"optim": {"decay_factor": 0.1}},
        "stages": {"mixed": _MIXUP, "smoothed": _SMOOTHED},
        "by_data": _MISLAS_BY_DATA,
    },
    "unimix_bayias_las": {
        "about": "the supplement's Table D3: unimix_bayias, then the second stage of mislas",
        "head": "scaled",
        "stages": {"mixed": {"loss": {"name": "bayias"}, **_UNIMIX}, "plain": _STOP_MIXING, "smoothed": _SMOOTHED},
        "by_data": _SMOOTHED_BY_DATA | _UNIMIX_BY_DATA,
    },
    "crt": {
        "about": "cross entropy, then ten epochs of a new classifier on class-balanced images",
        "stages": {
            "plain": {},
            "retrained": {
                "begin": 1.0,
                "epochs": 10,
                "sampler": {"name": "class_balanced"},
                "lr_multipliers": {"backbone": 0.0, "classifier": 1.0},
                "batch_norm": "train",
                "reinitialise": True,
                "schedule": {"name": "cosine", "learning_rate": 0.1},
            },
        },
    },
    "tau_norm": {
        "about": "cross entropy; the trained classifier's weights are divided by a power of their norms",
        "posthoc": {"name": "tau_norm", "norm_exponent": 0.7, "scan": True},
        "stages": {"plain": {}},
    },
}
