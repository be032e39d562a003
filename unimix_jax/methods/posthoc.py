"""What is done to the logits of a trained model. numpy; (logits, head, ...) -> (logits, what was chosen)."""

import numpy as np


def logit_adjustment(logits, head, *, train_prior, validation=None, strength: float = 1.0):
    """Subtract strength * log(train prior): a model trained by cross entropy answers for a uniform prior.

    Args:
      logits: float[N, K].
      head, validation: unused.
      train_prior: float[K], sums to 1, no zeros.
      strength: tau in its paper.

    Returns:
      float32[N, K], and {}.

    Source: google-research, logit_adjustment/main.py, mode "posthoc".
    """
    return (logits - strength * np.log(train_prior)).astype(np.float32), {}


def tau_norm(logits, head, *, validation=None, norm_exponent: float = 0.7, scan: bool = True):
    """Divide each class's weights by their norm to a power, and drop the bias.

    Args:
      logits: float[N, K] of a linear head.
      head: its parameters, {"linear": {"kernel": [F, K], "bias": [K]}}.
      validation: (logits, labels) of a validation split, None without one.
      norm_exponent: tau in its paper; 0 only drops the bias, 1 makes the weights unit vectors.
      scan: choose the exponent among 0, .1, .. 2 by the mean accuracy of the classes on the validation
        split, where there is one.

    Returns:
      float32[N, K], and {"norm_exponent": the one used}.

    Source: facebookresearch/classifier-balancing, tau_norm.py.
    """
    norms = np.linalg.norm(np.asarray(head["linear"]["kernel"], np.float64), axis=0)
    bias = np.asarray(head["linear"]["bias"])

    def normalised(values, exponent):
        return ((values - bias) / norms**exponent).astype(np.float32)

    if scan and validation is not None:
        values, labels = validation
        sizes = np.maximum(np.bincount(labels, minlength=len(bias)), 1)

        def class_accuracy(exponent):
            hits = normalised(values, exponent).argmax(axis=1) == labels
            return (hits / sizes[labels]).sum()

        norm_exponent = max((round(0.1 * i, 1) for i in range(21)), key=class_accuracy)
    return normalised(logits, norm_exponent), {"norm_exponent": norm_exponent}
