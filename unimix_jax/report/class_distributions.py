"""Class distributions of mixed images: pairs drawn with the training's sampler and factor, beside the theory."""

import jax
import numpy as np

from unimix_jax import priors
from unimix_jax.data import pairs, sampling
from unimix_jax.methods.mixing import unimix_factor
from unimix_jax.methods.shares import beta
from unimix_jax.theory import closed_forms
from unimix_jax.theory.exact import MOST_CLASSES, empirical_class_distribution, mixed_class_distribution, preference

_PAIRS = 100_000  # drawn for each distribution


def panels(
    counts: np.ndarray, *, alpha: float = 0.5, class_exponent: float = -1.0, wrap: bool = True, seed: int = 0
) -> list[dict] | None:
    """Return the panels of the paper's Fig. A1: training images, mixup, UniMix's factor alone, UniMix.

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
    classes, prior = len(counts), priors.prior(counts)
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

    def panel(title, equation, density, exact, label_b, weight, **options):
        grid, ranks = np.linspace(1, classes, 400), np.arange(1.0, classes + 1)
        options |= {"num_classes": classes, "imbalance": counts[0] / counts[-1]}
        values = density(grid, **options) / density(ranks, **options).sum()
        drawn = empirical_class_distribution(label_a, label_b, weight, classes)
        closed = f"closed form {equation}, scaled", grid, values
        return {"title": title, "closed": closed, "exact": exact, "drawn": drawn}

    label_a, natural, sampled = (drawn_classes(power, step) for step, power in enumerate((1.0, 1.0, class_exponent)))
    share_of_first = preference(counts[:, None], counts, alpha=alpha, wrap=wrap)
    shares = np.asarray(jax.jit(jax.vmap(lambda key: beta(key, 1.0)))(keys))
    factor = mixed_class_distribution(prior, prior, share_of_first)
    unimix = mixed_class_distribution(prior, priors.prior(counts, class_exponent), share_of_first)
    inverse = {"class_exponent": class_exponent}
    only = "UniMix's factor, natural partners"
    return [
        panel("Training images", "A.4", closed_forms.natural_density, prior, label_a, np.ones(_PAIRS)),
        panel(
            "mixup",
            "A.5",
            closed_forms.mixup_density,
            mixed_class_distribution(prior, prior, 0.5),
            natural,
            shares,
        ),
        panel(only, "A.8", closed_forms.factor_density, factor, natural, factors(natural)),
        panel("UniMix", "A.12", closed_forms.unimix_density, unimix, sampled, factors(sampled), **inverse),
    ]
