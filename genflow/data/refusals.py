"""What keeps the images of a set from being taken, gathered over all of them and told in one sentence."""

from __future__ import annotations

from collections.abc import Sequence

from genflow.data.decoding import Broken

_SIZE, _CHANNELS = "--data.size", "--data.channels"


class Findings:
    """The images that cannot be decoded, and of each kind that needs an option the first.

    Args:
        where: the folder, zip or data set, for messages.
    """

    def __init__(self, where: str) -> None:
        self._where = where
        self._broken: list[str] = []
        self._first: tuple[str, tuple[int, ...]] | None = None
        self._kinds: set[str] = set()
        self._told: dict[str, list[str]] = {}  # by the image's name
        self._options: dict[str, str] = {}  # by the option's name

    def __bool__(self) -> bool:
        return bool(self._broken or self._told)

    def broken(self, error: Broken) -> None:
        """Note an image that cannot be decoded."""
        self._broken.append(str(error))

    def sound(self, name: str, shape: tuple[int, ...], wanting: Sequence[tuple[str, str]] = ()) -> None:
        """Note the shape (C, H, W) of an image, and what keeps it from being taken: kinds, each with its option."""
        new = [(kind, option) for kind, option in wanting if kind not in self._kinds]
        if new:
            self._tell(name, f"has {' and '.join(kind for kind, _ in new)}", new)
        if self._first is None:
            self._first = name, shape
        first_name, first = self._first
        unequal = [
            *([(_SIZE, "--data.size 64 (or another number)")] * (shape[1:] != first[1:])),
            *([(_CHANNELS, "--data.channels 3 (or 1)")] * (shape[0] != first[0])),
        ]
        if any(kind not in self._kinds for kind, _ in unequal):
            self._tell(name, f"is {_words(shape)}, but {first_name} is {_words(first)}", unequal)

    def _tell(self, name: str, what: str, wanting: Sequence[tuple[str, str]]) -> None:
        self._told.setdefault(name, []).append(what)
        self._kinds.update(kind for kind, _ in wanting)
        for _, option in wanting:
            self._options.setdefault(option.split()[0], option)

    def refuse(self) -> None:
        """Raise ``ValueError`` if there is anything; images that cannot be decoded come first."""
        if self._broken:
            more = len(self._broken) - 10
            named = "; ".join(self._broken[:10]) + (f" and {more} more" if more > 0 else "")
            raise ValueError(
                f"{len(self._broken)} of the images in {self._where} cannot be decoded, repair or remove them: {named}"
            )
        if self._told:
            told = "; ".join(f"{name} {' and '.join(what)}" for name, what in self._told.items())
            raise ValueError(f"{told}: {' '.join(self._options.values())} converts all images")


def _words(shape: tuple[int, ...]) -> str:
    channels, height, width = shape
    return f"{width}x{height} {'grey' if channels == 1 else 'RGB'}"
