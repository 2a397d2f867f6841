"""Images to train on: embedded sets, procedural shapes, image folders and ``.npz`` files."""

from genflow.data.images import (
    EMBEDDED,
    ImageData,
    Split,
    cache_folder,
    load_images,
)

__all__ = ["EMBEDDED", "ImageData", "Split", "cache_folder", "load_images"]
