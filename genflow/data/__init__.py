"""Images to train on: embedded sets, procedural shapes, folders, zip and ``.npz`` files, data sets of the hub."""

from genflow.data.decoding import Decoding
from genflow.data.images import (
    EMBEDDED,
    ImageData,
    Split,
    cache_folder,
    load_images,
)

__all__ = ["EMBEDDED", "Decoding", "ImageData", "Split", "cache_folder", "load_images"]
