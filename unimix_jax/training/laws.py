"""What the training's sampler and factor do to the classes of mixed images, beside what theory says of them."""

import jax
import numpy as np

from unimix_jax import priors
from unimix_jax.data import sampling
from unimix_jax.measures import theory
from unimix_jax.methods import mixing

_PAIRS = 100_000  # drawn for each law


def factor_of(config: dict) -> dict:
    """Return alpha, class_exponent and wrap of the first UniMix stage of a run's config; the paper's if it has none."""
    factor = {"alpha": 0.5, "class_exponent": -1.0, "wrap": True}
    for stage in config.get("method", {}).get("stages", {}).values():
        mixer, partners = stage.get("mixer", {}), stage.get("partners", {})
        if (mixer.get("name"), partners.get("name")) == ("unimix", "by_class"):
            return factor | {k: options[k] for options in (mixer, partners) for k in factor if k in options}
    return factor


def class_laws(
    counts: np.ndarray, *, alpha: float = 0.5, class_exponent: float = -1.0, wrap: bool = True, seed: int = 0
) -> list[dict] | None:
    """Return the panels of the paper's Fig. A1: training images, mixup, UniMix.

    Args:
      counts: int[K], training images per class, in any order; classes without images are left out.
      alpha, wrap: of `mixing.unimix_factor`.
      class_exponent: of `sampling.partners_by_class`.
      seed: of the draws.

    Returns:
      For `plots.class_distributions`: title, closed (label, y, values), exact and drawn (float64[K], the most
      frequent class first); None for one class, and above `theory.MOST_CLASSES` or `theory.MOST_IMAGES`.
    """
    counts = np.sort(np.asarray(counts))[::-1]
    counts = counts[counts > 0]
    if not 2 <= len(counts) <= theory.MOST_CLASSES or counts.sum() > theory.MOST_IMAGES:
        return None
    classes, prior = len(counts), priors.prior(counts)
    sets = sampling.sorted_by_class(np.repeat(np.arange(classes), counts))
    label_a = sets.labels[sampling.natural(sets, seed=seed, step=0, batch_size=_PAIRS)]
    keys = jax.random.split(jax.random.key(seed), _PAIRS)

    def partners(exponent, step):
        drawn = sampling.partners_by_class(sets, class_exponent=exponent, seed=seed, step=step, size=_PAIRS)
        return sets.labels[drawn]

    def factors(label_b):
        draw = jax.vmap(lambda key, a, b: mixing.unimix_factor(key, a, b, alpha=alpha, wrap=wrap))
        return np.asarray(jax.jit(draw)(keys, counts[label_a], counts[label_b]))

    def panel(title, density, exact, label_b, weight, **options):
        grid, places = np.linspace(1, classes, 400), np.arange(1.0, classes + 1)
        law = {"num_classes": classes, "imbalance": counts[0] / counts[-1], **options}
        values = density(grid, **law) / density(places, **law).sum()
        drawn = theory.empirical_law(label_a, label_b, weight, classes)
        return {"title": title, "closed": ("closed form, scaled", grid, values), "exact": exact, "drawn": drawn}

    natural, inverse = partners(1.0, 0), partners(class_exponent, 1)
    preference = theory.preference(counts[:, None], counts, alpha=alpha, wrap=wrap)
    shares = np.asarray(jax.jit(jax.vmap(lambda key: mixing.beta(key, 1.0)))(keys))
    unimix = theory.mixed_law(prior, priors.prior(counts, class_exponent), preference)
    return [
        panel("Training images", theory.natural_density, prior, label_a, np.ones(_PAIRS)),
        panel("mixup", theory.mixup_density, theory.mixed_law(prior, prior, 0.5), natural, shares),
        panel("UniMix", theory.unimix_density, unimix, inverse, factors(inverse), class_exponent=class_exponent),
    ]
