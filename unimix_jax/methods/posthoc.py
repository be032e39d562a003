"""Changes of a trained model's logits: (logits, head, ...) -> (logits, the options that were chosen). numpy only."""

from typing import Any

import numpy as np

from unimix_jax import registry


@registry.Posthoc(
    turns_prior=("train", "uniform"), prior_holds_at={"strength": 1.0}, options={"strength": registry.NUMBER}
)
def logit_adjustment(
    logits: np.ndarray, head: Any, *, train_prior: np.ndarray, validation: Any = None, strength: float = 1.0
) -> tuple[np.ndarray, dict[str, float]]:
    """Subtract strength * log(train prior): a model trained by cross entropy answers for a uniform prior.

    Args:
      logits: float[N, K].
      head: unused.
      train_prior: float[K], sums to 1, no zeros.
      validation: unused.
      strength: tau in its paper.

    Returns:
      float32[N, K], and {}.

    Source: google-research, logit_adjustment/main.py, mode "posthoc".

    Example: an answer of 90 % for the class with 90 % of the images says nothing.
      >>> logits, _ = logit_adjustment(np.log([[0.9, 0.1]]), None, train_prior=np.array([0.9, 0.1]))
      >>> logits
      array([[0., 0.]], dtype=float32)
    """
    return (logits - strength * np.log(train_prior)).astype(np.float32), {}


@registry.Posthoc(
    head_parameters=("linear/kernel", "linear/bias"),
    options={"norm_exponent": registry.NUMBER, "scan": registry.FLAG},
)
def tau_norm(
    logits: np.ndarray, head: Any, *, validation: Any = None, norm_exponent: float = 0.7, scan: bool = True
) -> tuple[np.ndarray, dict[str, float]]:
    """Divide each class's weights by a power of their norm, and drop the bias.

    Args:
      logits: float[N, K] of a linear head.
      head: its parameters, {"linear": {"kernel": [F, K], "bias": [K]}}.
      validation: (logits, labels) of a validation split, None without one.
      norm_exponent: tau in its paper; 0 only drops the bias, 1 makes the weights unit vectors.
      scan: whether to choose the exponent among 0, .1, .. 2 by the mean accuracy of the classes on the validation
        split, where there is one.

    Returns:
      float32[N, K], and {"norm_exponent": the one used}.

    Source: facebookresearch/classifier-balancing, tau_norm.py.

    Example: the features (1, 2) under weights of the norms 10 and 1.
      >>> head = {"linear": {"kernel": np.diag([10.0, 1.0]), "bias": np.zeros(2)}}
      >>> tau_norm(np.array([[10.0, 2.0]]), head, norm_exponent=1.0)
      (array([[1., 2.]], dtype=float32), {'norm_exponent': 1.0})
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
