"""Class distributions of mixed images: pairs drawn with the training's sampler and factor, beside the theory."""

import jax
import numpy as np

from unimix_jax import priors
from unimix_jax.data import pairs, sampling
from unimix_jax.methods.mixing import unimix_factor
from unimix_jax.methods.shares import beta
from unimix_jax.theory import closed_forms
from unimix_jax.theory.exact import MOST_CLASSES, empirical_class_distribution, mixed_class_distribution, preference

PAPER_PANELS = tuple((classes, imbalance) for classes in (10, 100) for imbalance in (10, 100, 200))  # of Fig. A1
_PAIRS = 100_000  # drawn for each distribution


def paper_panels(alpha: float = 0.5, class_exponent: float = -1.0, wrap: bool = True) -> dict[str, list[dict]]:
    """Return the six panels of the paper's Fig. A1: those of CIFAR-10-LT and CIFAR-100-LT at three imbalances.

    Args:
      alpha: of `unimix_factor`.
      class_exponent: of `pairs.partners_by_class`.
      wrap: of `unimix_factor`.

    Returns:
      title -> the distributions of training images, mixup, UniMix's factor alone and UniMix, for
      `plots.class_distributions_side_by_side`; see `distributions`.
    """
    return {
        f"{classes} classes, imbalance {imbalance}": distributions(
            closed_forms.exponential_profile(classes, imbalance), alpha, class_exponent, wrap
        )
        for classes, imbalance in PAPER_PANELS
    }


def distributions(counts: np.ndarray, alpha: float, class_exponent: float, wrap: bool) -> list[dict]:
    """Return the distributions of Corollaries 1 to 3 as closed forms, and exactly for the factor that is used.

    Args:
      counts: float[K], training images per class or numbers in proportion to them, the most frequent class first,
        none 0.
      alpha: see `paper_panels`.
      class_exponent: see `paper_panels`.
      wrap: see `paper_panels`.

    Returns:
      Of training images, mixup, UniMix's factor with natural partners and UniMix: title; equation, of the closed form;
      y and values, float64[400], its curve, scaled to sum to 1 over the classes; exact, float64[K].
    """
    prior, classes = priors.prior(counts), len(counts)
    share_of_first = preference(counts[:, None], counts, alpha=alpha, wrap=wrap)
    sampled = priors.prior(counts, class_exponent)

    def distribution(title, equation, density, exact, **options):
        y, ranks = np.linspace(1, classes, 400), np.arange(1.0, classes + 1)
        options |= {"num_classes": classes, "imbalance": counts[0] / counts[-1]}
        values = density(y, **options) / density(ranks, **options).sum()
        return {"title": title, "equation": equation, "y": y, "values": values, "exact": exact}

    factor, unimix = (mixed_class_distribution(prior, partner, share_of_first) for partner in (prior, sampled))
    only, inverse = "UniMix's factor, natural partners", {"class_exponent": class_exponent}
    return [
        distribution("Training images", "A.4", closed_forms.natural_density, prior),
        distribution("mixup", "A.5", closed_forms.mixup_density, mixed_class_distribution(prior, prior, 0.5)),
        distribution(only, "A.8", closed_forms.factor_density, factor),
        distribution("UniMix", "A.12", closed_forms.unimix_density, unimix, **inverse),
    ]


def panels(
    counts: np.ndarray, *, alpha: float = 0.5, class_exponent: float = -1.0, wrap: bool = True, seed: int = 0
) -> list[dict] | None:
    """Return one panel of the paper's Fig. A1 as four, with draws: training images, mixup, UniMix's factor, UniMix.

    Args:
      counts: int[K] or float[K], training images per class or numbers in proportion to them, in any order; classes
        without images are left out.
      alpha: of `unimix_factor`.
      wrap: of `unimix_factor`.
      class_exponent: of `pairs.partners_by_class`.
      seed: of the draws.

    Returns:
      For `plots.class_distributions`: title, closed (label, y, values), exact and drawn (float64[K], the most
      frequent class first); None for one class, and above `theory.exact.MOST_CLASSES`.
    """
    counts = np.sort(np.asarray(counts, np.float64))[::-1]
    counts = counts[counts > 0]
    if not 2 <= len(counts) <= MOST_CLASSES:
        return None
    classes = len(counts)
    # A data set of one position a class: the sampler draws a class by its count, whole or not, then that position,
    # because a random number below 1 times a relative count is below 1.
    each = np.arange(classes)
    class_index = sampling.ClassIndex(labels=each, order=each, first=each, counts=counts / counts[0])
    keys = jax.random.split(jax.random.key(seed), _PAIRS)

    def drawn_classes(exponent, step):
        return pairs.partners_by_class(class_index, class_exponent=exponent, seed=seed, step=step, size=_PAIRS)

    draw_factors = jax.jit(jax.vmap(lambda key, a, b: unimix_factor(key, a, b, alpha=alpha, wrap=wrap)))

    def factors(label_b):
        return np.asarray(draw_factors(keys, class_index.counts[label_a], class_index.counts[label_b]))

    label_a, natural, sampled = (drawn_classes(power, step) for step, power in enumerate((1.0, 1.0, class_exponent)))
    shares = np.asarray(jax.jit(jax.vmap(lambda key: beta(key, 1.0)))(keys))
    pairs_of_each = (
        (label_a, np.ones(_PAIRS)),
        (natural, shares),
        (natural, factors(natural)),
        (sampled, factors(sampled)),
    )
    return [
        {
            "title": each["title"],
            "closed": (f"closed form {each['equation']}, scaled", each["y"], each["values"]),
            "exact": each["exact"],
            "drawn": empirical_class_distribution(label_a, label_b, weight, classes),
        }
        for each, (label_b, weight) in zip(
            distributions(counts, alpha, class_exponent, wrap), pairs_of_each, strict=True
        )
    ]
