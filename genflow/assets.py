"""Where the packaged data lie: splits, small frozen networks, a small trained model.

In an installed wheel they are in ``genflow/_assets``, in a checkout in ``assets`` beside the
package.
"""

from pathlib import Path

_PACKAGE = Path(__file__).resolve().parent
_PLACES = (_PACKAGE / "_assets", _PACKAGE.parent / "assets")


def asset(name: str) -> Path:
    """Path of one packaged file or folder, for instance ``asset("splits/digits.json")``.

    Args:
        name: relative to the assets folder, with forward slashes.

    Raises:
        RuntimeError: the file is in neither place (a broken installation).
    """
    for place in _PLACES:
        if (place / name).exists():
            return place / name
    looked = " and ".join(str(place) for place in _PLACES)
    raise RuntimeError(
        f"the packaged file {name!r} is missing (looked in {looked}); reinstall genflow, "
        "or run from a complete checkout"
    )
