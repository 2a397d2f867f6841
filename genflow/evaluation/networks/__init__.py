"""The networks that ``load_features`` gives, one file each, and what they share: images, precision, weights."""
