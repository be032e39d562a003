"""Write rand_augment.npz: each operation of torchvision's RandAugment on two small images.

python tests/golden/rand_augment.py      (needs torch and torchvision)
"""

import pathlib

import numpy as np

OPERATIONS = (
    "Identity", "ShearX", "ShearY", "TranslateX", "TranslateY", "Rotate", "Brightness", "Color", "Contrast",
    "Sharpness", "Posterize", "Solarize", "AutoContrast", "Equalize",
)  # fmt: skip
MAGNITUDES = (9, 30)


def waves(height: int, width: int, channels: int) -> np.ndarray:
    """Return an image of waves and noise, with neither black nor white."""
    random = np.random.RandomState(0)
    y, x = np.mgrid[:height, :width]
    image = np.stack([110 + 60 * np.sin(x / 5 + k) + 50 * np.cos(y / 4 - k) for k in range(channels)], axis=-1)
    return np.clip(image + random.normal(0, 12, image.shape), 8, 240).astype(np.uint8)


def main():
    import torch
    from torchvision.transforms import InterpolationMode, autoaugment

    arrays = {"colour": waves(20, 17, 3), "grey": waves(14, 15, 1)}  # grey: too few pixels to be equalised
    for name, image in list(arrays.items()):
        tensor = torch.from_numpy(image).permute(2, 0, 1)
        space = autoaugment.RandAugment()._augmentation_space(31, image.shape[:2])
        for magnitude in MAGNITUDES:
            for sign in (1, -1):
                every = []
                for operation in OPERATIONS:
                    magnitudes, signed = space[operation]
                    value = float(magnitudes[magnitude]) * (sign if signed else 1) if magnitudes.ndim else 0.0
                    out = autoaugment._apply_op(tensor, operation, value, InterpolationMode.NEAREST, None)
                    every.append(out.permute(1, 2, 0).numpy())
                arrays[f"{name}_{magnitude}_{sign}"] = np.stack(every)
    np.savez_compressed(pathlib.Path(__file__).with_suffix(".npz"), **arrays)


if __name__ == "__main__":
    main()
