"""Figures are told with digits that their error bears out, beside all that they rest on."""

import subprocess
import sys

import pytest
from figures import result

from genflow.evaluation.protocol import Figure
from genflow.evaluation.wording import describe, number, show, show_error, show_limit


@pytest.mark.parametrize(
    ("value", "error", "shown"),
    [
        (12.3416, 0.2134, "12.34"),
        (12.3416, 2.1, "12.3"),  # three digits, whatever the error
        (1234.5, 56.0, "1234"),
        (0.0030912, 0.000412, "0.00309"),
        (0.03, 0.2, "0.030"),
        (0.03, 0.0004, "0.03000"),
        (12.3416, 1e-9, "12.3416"),  # and no more than six
        (1.66412, None, "1.664"),
        (0.0, None, "0"),
        (0.0, 0.0, "0"),
        (-0.00021, 0.0003, "-0.000210"),
        (3.0, 0.0, "3.000"),
    ],
)
def test_digits_match_the_error(value, error, shown):
    assert number(value, error) == shown


@pytest.mark.parametrize("exponent", range(-7, 6))
def test_no_more_is_lost_than_the_error_hides(exponent):
    for value in (1.23456789, 9.9996, 5.5):
        for relative in (0.3, 0.01, 0.0007):
            scaled, error = value * 10.0**exponent, relative * value * 10.0**exponent
            assert abs(float(number(scaled, error)) - scaled) <= max(error / 10, 0.5)
            assert float(show_error(error)) == pytest.approx(error, rel=0.051) or error > 10


def test_shares_are_told_as_such():
    assert show("accuracy", Figure(value=0.98712)) == "98.7%"
    assert show("accuracy", Figure(value=0.98712, standard_error=0.0021)) == "98.7% ± 0.2%"
    assert [show("memorising", Figure(value=v)) for v in (1.01834, 1.0, 0.00312)] == ["1.02", "1", "0.0031"]
    assert show("fd", Figure(value=4.0, standard_error=0.0)) == "4.000 ± 0"


def test_a_limit_has_as_many_digits_as_its_interval_is_wide():
    assert show_limit(Figure(value=1.0)) == ""
    assert show_limit(Figure(value=1.0, limit=11.9021, interval=(11.4123, 12.3887))) == "11.90 [11.41, 12.39]"
    assert show_limit(Figure(value=1.0, limit=0.9113, interval=(0.6421, 1.2711))) == "0.911 [0.642, 1.271]"
    assert show_limit(Figure(value=1.0, limit=-0.0003, interval=(-0.31, 0.42))) == "-0.000 [-0.310, 0.420]"
    assert show_limit(Figure(value=1.0, limit=11.9021)) == "11.90"


def test_all_that_a_figure_rests_on_is_told():
    extra = {"sfid": Figure(value=20.123, standard_error=0.31), "precision": Figure(value=0.7123)}
    whole = result(12.3416, 0.2134, figures=extra, network__name="inception", samples__n=5000, notes=("a\nb", "c"))
    lines = describe(whole).splitlines()
    assert lines[0] == "FID-5k[inception-tf,uint8,raw] = 12.34 (s.e. 0.21)"
    assert lines[1] == "  sFID 20.12 ± 0.31, precision 0.712  (± standard error)"
    for part in ("5,000 images", "seeds 0 to 4999", "euler", "4 steps, 4 network calls", "no guidance", "cd" * 6):
        assert part in lines[2]
    assert "EMA half-life 9" in lines[2]
    for part in ("reference: digits-test, split test, 599 images", "ab" * 6):
        assert part in lines[3]
    for part in ("network: inception (weights efefefefefef)", "resize none", "shown uint8", "float32", "64 dims"):
        assert part in lines[4]
    assert lines[5:] == ["warning: a b", "warning: c"]


def test_a_model_of_embedded_data_is_told_beside_real_images():
    extra = {name: Figure(value=v) for name, v in (("floor", 1.66412), ("memorising", 1.018), ("accuracy", 0.98712))}
    whole = result(figures=extra, distances=(3.8, 4.0, 4.1, 3.9, 4.2), samples__sampling__guidance=1.5)
    text = describe(whole)
    assert "\n  mean of 5 seed ranges\n" in text
    assert "\n  floor 1.664 (real images), memorising ratio 1.02 (real is 1), asked class 98.7%\n" in text
    assert "599 images in each of 5 seed ranges, seeds 0 to 2994" in text
    assert "guidance 1.5" in text


def test_what_nobody_knows_is_said_to_be_missing():
    bare = result(
        error=None,
        samples__sampling=None,
        reference__split=None,
        reference__n=None,
        reference__hash=None,
        reference__codec=None,
        network__weights=None,
        network__dtype=None,
    )
    first, samples, reference, network = describe(bare).splitlines()
    assert first == "FD-599[digits,uint8,raw] = 4.000"
    assert "seeds" not in samples
    assert reference.count("not recorded") == 4
    assert network.count("not recorded") == 2
    limit = result().distance
    assert limit.limit is None
    assert "infinitely" not in describe(bare)


def test_a_limit_stands_with_its_interval():
    whole = result()
    figures = {"fd": Figure(value=12.3, standard_error=0.2, limit=11.9021, interval=(11.4123, 12.3887))}
    text = describe(type(whole)(protocol=whole.protocol, figures=figures))
    assert "\n  with infinitely many images 11.90 (95 % interval 11.41 to 12.39)\n" in text


def test_a_hostile_name_moves_no_cursor():
    assert "\x1b" not in describe(result(samples__name="a\x1b[2Jb", notes=("\x1b[1A",)))


def test_describing_needs_no_torch():
    code = "import sys, genflow.evaluation.wording, genflow.evaluation.comparison; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
