"""Real images to be carried to a model's noise: read in the model's shape, with classes that it knows."""

from __future__ import annotations

from genflow.cli.sides import ReadingArguments, reading_of
from genflow.data.embedded import MNIST_SIDE
from genflow.data.images import ImageData, Split
from genflow.data.pairs import is_pairs
from genflow.denoiser import Denoiser


def read_for(denoiser: Denoiser, model: str, source: str, split: Split, reading: ReadingArguments) -> ImageData:
    """Return images of the shape that ``denoiser``, saved at ``model``, draws; read as its run read its own.

    Raises ``ValueError`` for pairs, for images of another shape, and for what ``load_images`` refuses.
    """
    if is_pairs(source):
        raise ValueError(f"{source} is a folder of pairs, whose images have their noise already: give a set of images")
    data = reading_of(reading, model, source).load(source, split)
    if data.image_shape != denoiser.image_shape:
        (channels, height, width), (own, *size) = data.image_shape, denoiser.image_shape
        raise ValueError(
            f"the images of {data.name} are {height}x{width} of {channels} channels, and this model's"
            f" {size[0]}x{size[1]} of {own}: {_conversion(source, denoiser)}"
        )
    return data


def _conversion(source: str, denoiser: Denoiser) -> str:
    """Say what would bring images into a model's shape."""
    own, height, width = denoiser.image_shape
    if source == "mnist5k" and own == 1 and height == width < MNIST_SIDE:
        return f"--data.size {height} resizes them"
    return f"files in a folder or zip are converted by --data.size {height} --data.channels {own}"


def own_labels(denoiser: Denoiser, data: ImageData) -> list[int] | None:
    """Return each image's class, as the model counts them: in order those that it has. None for one without classes.

    Raises ``ValueError`` for images without labels, and for more classes than the model has.
    """
    if denoiser.num_classes == 0:
        return None
    if data.labels is None:
        raise ValueError(f"this model has classes, and the images of {data.name} no labels: give --labels none")
    classes = denoiser.classes
    if data.num_classes > len(classes):
        raise ValueError(
            f"the images of {data.name} have {data.num_classes} classes, and this model {len(classes)}: give"
            " --labels none, or name by --data.keep those that the model's are, which are matched in their order"
        )
    return [classes[label] for label in data.labels.tolist()]
