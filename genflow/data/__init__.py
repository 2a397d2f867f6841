"""Images to train on: embedded sets, procedural shapes, folders, zip and ``.npz`` files, data sets of the hub."""

from genflow.data.decoding import Decoding
from genflow.data.images import (
    EMBEDDED,
    ImageData,
    Split,
    cache_folder,
    load_images,
)
from genflow.data.provenance import Provenance, Stored, is_grey

__all__ = [
    "EMBEDDED",
    "Decoding",
    "ImageData",
    "Provenance",
    "Split",
    "Stored",
    "cache_folder",
    "is_grey",
    "load_images",
]
