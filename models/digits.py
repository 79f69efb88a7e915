"""The UCI digits: 1,797 images of 8×8 pixels, with the split the models were trained on."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

FOLDER = Path(__file__).parent
MODELS = ("digits_resnet", "digits_mobilenet", "digits_vit")


@dataclass(frozen=True)
class Digits:
    """Images float32 (n, 1, 8, 8) from 0 to 1, labels int64 (n,) from 0 to 9."""

    images: NDArray[np.float32]
    labels: NDArray[np.int64]


def load_digits(split: str = "test") -> Digits:
    """The images of a split: "train" (70 %) or "test" (30 %, never trained on)."""
    with np.load(FOLDER / "digits.npz") as data:
        chosen = data[split].astype(np.int64)
        images = data["images"][chosen].astype(np.float32) / 16
        return Digits(images[:, None], data["labels"][chosen].astype(np.int64))


def accuracy(run: Callable[[NDArray[np.float32]], NDArray[Any]], digits: Digits) -> float:
    """Fraction of images whose largest logit, from ``run(images) -> (n, 10)``, is at the label."""
    return float((run(digits.images).argmax(axis=1) == digits.labels).mean())


def unlabelled(count: int = 200) -> NDArray[np.float32]:
    """Images to calibrate on, from those the models were trained on, without their labels."""
    return load_digits("train").images[:count]


def labelled(count: int = 600) -> dict[str, NDArray[Any]]:
    """Images to calibrate on and to measure accuracy on, and their labels; none of the test split."""
    digits = load_digits("train")
    return {"x": digits.images[:count], "labels": digits.labels[:count]}
