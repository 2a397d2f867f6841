import pytest

from genflow import assets


def test_checkout_and_wheel_are_both_found(tmp_path, monkeypatch):
    wheel, checkout = tmp_path / "_assets", tmp_path / "assets"
    monkeypatch.setattr(assets, "_PLACES", (wheel, checkout))
    for place in (checkout, wheel):
        (place / "splits").mkdir(parents=True)
        (place / "splits" / "x.json").touch()
        assert assets.asset("splits/x.json") == place / "splits" / "x.json"
    with pytest.raises(RuntimeError, match=r"'splits/y\.json' is missing .*reinstall genflow"):
        assets.asset("splits/y.json")
