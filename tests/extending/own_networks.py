"""Networks and other parts of a user, which tests name `my_networks:...`; most cannot be used."""

import flax.linen as nn

from unimix_jax.models import heads


class ConvNeXt(nn.Module):
    """A small network of another kind, without batch statistics."""

    num_classes: int
    head: str = "linear"

    @nn.compact
    def __call__(self, images, train):
        x = nn.Conv(16, (2, 2), (2, 2))(images)
        y = nn.LayerNorm()(nn.Conv(16, (3, 3), feature_group_count=16)(x))
        x = x + nn.Dense(16)(nn.gelu(nn.Dense(32)(y)))
        return heads.build(self.head, self.num_classes)(nn.LayerNorm()(x.mean(axis=(1, 2))))


class Dropped(nn.Module):
    """A linear network behind dropout: the smallest that draws random numbers."""

    num_classes: int
    head: str = "linear"

    @nn.compact
    def __call__(self, images, train):
        x = nn.Dropout(0.5, deterministic=not train)(images.reshape(len(images), -1))
        return heads.build(self.head, self.num_classes)(x)


class Headless(nn.Module):
    """A network whose last layer has another name."""

    num_classes: int

    @nn.compact
    def __call__(self, images, train):
        return nn.Dense(self.num_classes, name="last")(images.reshape(len(images), -1))


class BatchNormAndDropout(nn.Module):
    """A network that cannot be trained image by image."""

    num_classes: int

    @nn.compact
    def __call__(self, images, train):
        x = nn.BatchNorm(use_running_average=not train)(images.reshape(len(images), -1))
        return heads.build("linear", self.num_classes)(nn.Dropout(0.5, deterministic=not train)(x))


class HeadWithoutLinear(nn.Module):
    """A network whose head is a layer of Flax."""

    num_classes: int

    @nn.compact
    def __call__(self, images, train):
        return nn.Dense(self.num_classes, name="head")(images.reshape(len(images), -1))


class HeadIsAnArray(nn.Module):
    """A network with a parameter called head."""

    num_classes: int

    @nn.compact
    def __call__(self, images, train):
        x = images.reshape(len(images), -1)
        return x @ self.param("head", nn.initializers.normal(), (x.shape[-1], self.num_classes))


class Unsynchronised(nn.Module):
    """A network whose statistics are those of a device's share."""

    num_classes: int

    @nn.compact
    def __call__(self, images, train):
        x = nn.BatchNorm(use_running_average=not train)(nn.Conv(8, (3, 3), (2, 2))(images))
        return heads.build("linear", self.num_classes)(x.mean(axis=(1, 2)))


class Synchronised(nn.Module):
    """The same with statistics of the whole batch."""

    num_classes: int
    axis: str | None = None

    @nn.compact
    def __call__(self, images, train):
        norm = nn.BatchNorm(use_running_average=not train, axis_name=self.axis, use_fast_variance=False)
        return heads.build("linear", self.num_classes)(norm(nn.Conv(8, (3, 3), (2, 2))(images)).mean(axis=(1, 2)))


class Raises(nn.Module):
    """A network, and a head, with a mistake in its call."""

    num_classes: int

    @nn.compact
    def __call__(self, images, train=False):
        return nn.Dense(self.num_classes)(images.reshape(len(images), 7))


class Exits(nn.Module):
    """A network that ends the process."""

    num_classes: int

    def __post_init__(self):
        raise SystemExit("no licence")


class LogitsOf(nn.Module):
    """A network that returns logits of another type."""

    num_classes: int
    type: str = "bfloat16"

    @nn.compact
    def __call__(self, images, train):
        return heads.build("linear", self.num_classes)(images.reshape(len(images), -1)).astype(self.type)


class NoModule:
    """A network of another library."""

    def __init__(self, num_classes, name=""):
        pass


class Features(nn.Module):
    """A network that returns no logits."""

    num_classes: int

    @nn.compact
    def __call__(self, images, train):
        return images.reshape(len(images), -1)


def negative(step):
    return -1.0


def halved(keys, images):
    return images[:, ::2]


def nothing(*arguments):
    return None
