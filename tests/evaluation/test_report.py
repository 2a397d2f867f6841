"""The page needs nothing else, says all that is known, and runs nothing that a name might hold."""

import base64
import io
import itertools
import math
import re
from dataclasses import fields, replace
from html.parser import HTMLParser
from pathlib import Path

import pytest
import torch
from figures import PROTOCOL, result
from PIL import Image

from genflow.evaluation.curve import curve, series_of
from genflow.evaluation.protocol import Figure
from genflow.evaluation.report import Flow, write_report
from genflow.evaluation.straightness import Straightness

HOSTILE = "<script>alert(1)</script>\"'><img src=http://evil/x onerror=alert(1)>"
VOID = {"meta", "img", "br", "circle", "line", "path", "polyline"}


class Page(HTMLParser):
    """A page taken apart: elements with their attributes, and text by the elements that it lies in."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict]] = []
        self.open: list[str] = []
        self.text: list[str] = []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if "style" not in self.open:
            self.text.append(data.strip())

    def said(self) -> str:
        return " ".join(filter(None, self.text))


def steps(*counts: int) -> list:
    """Results of several numbers of steps, the last the best."""
    extra = {"floor": Figure(value=1.664), "memorising": Figure(value=1.018), "accuracy": Figure(value=0.98712)}
    return [
        result(
            16.0 / k, 0.2, figures=extra, distances=(1.0,) * 5, samples__sampling__steps=k, samples__sampling__calls=k
        )
        for k in counts
    ]


def written(tmp_path: Path, results: list, pictures: dict | None = None, title: str = "a", command: str = "") -> Page:
    write_report(tmp_path / "report.html", results, pictures or {}, title, command=command)
    assert [p.name for p in tmp_path.iterdir()] == ["report.html"]
    return Page((tmp_path / "report.html").read_text(encoding="utf-8"))


def test_nothing_is_loaded_from_anywhere_and_nothing_runs(tmp_path):
    page = written(tmp_path, steps(1, 2), {"one": torch.zeros(3, 4, 4, dtype=torch.uint8)}, command="genflow fid a b")
    assert not {"script", "link", "iframe", "object"} & {tag for tag, _ in page.elements}
    for _, attributes in page.elements:
        assert not [name for name in attributes if name.startswith("on")]
        for name in ("src", "href", "data", "srcset"):
            assert attributes.get(name, "data:image/png;base64,").startswith("data:image/png;base64,")
    text = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "url(" not in text
    assert "@import" not in text
    assert "default-src 'none'" in text


def test_whatever_a_name_holds_is_text(tmp_path):
    names = {f"{side}__name": HOSTILE for side in ("samples", "reference", "network")}
    fieldwise = {"samples__codec": HOSTILE, "reference__hash": HOSTILE, "reference__resize": HOSTILE}
    drawn = {"samples__sampling__sampler": HOSTILE, "samples__sampling__ema": HOSTILE}
    figures = {HOSTILE: Figure(value=1.0), "floor": Figure(value=1.0)}
    hostile = [
        result(
            1.0 * k,
            figures=figures,
            notes=(HOSTILE,),
            per_class={HOSTILE: Figure(value=1.0)},
            **names,
            **fieldwise,
            **drawn,
            samples__sampling__steps=k,
        )
        for k in (1, 2)
    ]
    page = written(tmp_path, hostile, {HOSTILE: torch.zeros(1, 4, 4, dtype=torch.uint8)}, HOSTILE, HOSTILE)
    tags = {tag for tag, _ in page.elements}
    assert "script" not in tags
    assert sum(tag == "img" for tag, _ in page.elements) == 1
    assert page.said().count("<script>alert(1)</script>") > 10


def test_pictures_lie_in_the_page_to_the_last_pixel(tmp_path):
    torch.manual_seed(0)
    pictures = {f"picture {c}": torch.randint(256, (c, 5, 7), dtype=torch.uint8) for c in (1, 3)}
    page = written(tmp_path, steps(1), pictures)
    shown = [attributes for tag, attributes in page.elements if tag == "img"]
    assert [each["alt"] for each in shown] == [*pictures]
    for each, image in zip(shown, pictures.values(), strict=True):
        with Image.open(io.BytesIO(base64.b64decode(each["src"].split(",")[1]))) as picture:
            pixels = torch.frombuffer(bytearray(picture.tobytes()), dtype=torch.uint8).reshape(5, 7, -1)
        assert torch.equal(pixels.movedim(2, 0), image)


def test_the_flow_of_the_model_stands_in_a_part_of_its_own(tmp_path):
    found = Straightness(
        straightness=Figure(value=0.0913, standard_error=0.0017),
        one_step_gap=Figure(value=0.1763, standard_error=0.0035),
        times=(1.0, 0.5, 0.0),
        profile=(0.3, 0.1),
    )
    flow = Flow(found=found, seeds=9, picture=torch.zeros(3, 5, 7, dtype=torch.uint8))
    write_report(tmp_path / "flow.html", steps(1), {}, "a", flow=flow)
    page = Page((tmp_path / "flow.html").read_text(encoding="utf-8"))
    part = page.said()[page.said().index("Straightness of the flow") :]
    told = ("0.0913 ± 0.0017", "1 against 2 steps 0.1763 ± 0.0035", "images 50%, 33%, 17%", "Of 9 seeds in 2 steps")
    assert all(words in part for words in told)
    assert [attributes["width"] for tag, attributes in page.elements if tag == "img"] == ["7"]
    (tmp_path / "flow.html").unlink()
    assert "Straightness" not in written(tmp_path, steps(1)).said()


def test_the_best_figure_stands_first_with_its_protocol_and_the_floor(tmp_path):
    said = written(tmp_path, steps(1, 8, 2), title="mine against theirs").said()
    assert said.startswith("mine against theirs mine against theirs FD-599[digits,uint8,raw] 2.00 ± 0.20")
    head = said[: said.index("All figures")]
    for part in ("best of 3: euler, 8 steps", "floor of real images, 1.664 1.20", "1.02", "98.7%", "digits-test"):
        assert part in head


def test_every_field_of_the_protocol_is_there_and_what_is_unknown_is_said(tmp_path):
    blank = replace(
        result(),
        protocol=replace(
            PROTOCOL,
            reference=replace(PROTOCOL.reference, **dict.fromkeys(("n", "hash", "split", "shape", "codec", "resize"))),
        ),
    )
    page = written(tmp_path, [blank])
    said = page.said()
    full = said[said.index("Protocol in full") :]
    records = (PROTOCOL.samples, PROTOCOL.samples.sampling, PROTOCOL.reference, PROTOCOL.network)
    for record in records:
        for field in fields(record):
            assert field.name == "sampling" or field.name.replace("_", " ") in full
    assert full.count("not recorded") == 6 + 1  # and the hash of the samples
    assert "cd" * 32 in full  # fingerprints in whole


def test_what_differs_between_results_is_told_by_all_its_values(tmp_path):
    said = written(tmp_path, steps(1, 2, 4)).said()
    assert "1 · 2 · 4" in said[said.index("Protocol in full") :]


def test_parts_without_content_are_left_out(tmp_path):
    said = written(tmp_path, [result()]).said()
    for title in ("Distance over steps", "Pictures", "each class", "To bear in mind", "How to repeat"):
        assert title not in said
    whole = [replace(each, notes=("mind this",), per_class={"cat": Figure(value=3.0)}) for each in steps(1, 2)]
    said = written(
        tmp_path, whole, {"a": torch.zeros(1, 2, 2, dtype=torch.uint8)}, command="genflow fid 'a b' c"
    ).said()
    for part in ("Distance over steps", "Pictures", "each class", "To bear in mind mind this", "genflow fid 'a b' c"):
        assert part in said


def test_classes_come_worst_first_with_bars_in_proportion(tmp_path):
    per_class = {f"class {k}": Figure(value=float(k + 1)) for k in range(25)}
    write_report(tmp_path / "a.html", [result(per_class=per_class)], {}, "a")
    text = (tmp_path / "a.html").read_text(encoding="utf-8")
    assert re.findall(r"<td>(class \d+)</td>", text) == [f"class {k}" for k in reversed(range(25))]
    widths = [float(w) for w in re.findall(r"width: ([\d.]+)%\"", text)]
    assert widths == pytest.approx([4.0 * k for k in range(25, 0, -1)])
    assert text.index("<details>") < text.index("class 4<")
    assert text.index("class 5<") < text.index("<details>")


# The curve


def points(drawn: str, kind: str = "s0") -> list[tuple[float, float]]:
    found = re.findall(rf'<circle class="{kind}" cx="([\d.]+)" cy="([\d.]+)"', drawn)
    return [(float(x), float(y)) for x, y in found]


def test_steps_are_laid_out_in_the_logarithm_and_in_order():
    places = points(curve(steps(8, 1, 4, 2)))
    gaps = [b[0] - a[0] for a, b in itertools.pairwise(places)]
    assert len(places) == 4
    assert gaps == pytest.approx([gaps[0]] * 3, abs=0.2)
    assert places == sorted(places)
    falls = [b[1] - a[1] for a, b in itertools.pairwise(places)]
    assert falls == pytest.approx([falls[0]] * 3, abs=0.2)  # halved each time, over a wide range: a logarithmic axis
    assert falls[0] > 0


def test_a_narrow_range_has_an_axis_from_zero_and_bars_of_95_percent():
    close = [result(value, 0.5, samples__sampling__steps=k) for k, value in ((1, 4.0), (2, 3.0), (4, 2.0))]
    drawn = curve(close)
    places = points(drawn)
    unit = places[1][1] - places[0][1]  # of one
    assert places[2][1] - places[1][1] == pytest.approx(unit, abs=0.2)
    bars = re.findall(r'<path class="bars s0" d="M[\d.]+ ([\d.]+)V([\d.]+)', drawn)
    assert len(bars) == 3
    for top, bottom in bars:
        assert (float(bottom) - float(top)) / unit == pytest.approx(2 * 1.96 * 0.5, abs=0.02)
    assert ">0</text>" in drawn


def test_the_floor_is_drawn_where_there_is_one():
    drawn = curve(steps(1, 2, 4, 8))
    match = re.search(r'<line class="floor" [^>]*y1="([\d.]+)"', drawn)
    assert match is not None
    (first, second), (_, last) = points(drawn)[0], points(drawn)[-1]
    octave = (last - second) / 3
    assert float(match[1]) == pytest.approx(second + octave * math.log2(16 / 1.664), abs=0.3)
    assert first > 0
    bare = [result(4.0 / k, samples__sampling__steps=k) for k in (1, 2)]
    assert 'class="floor"' not in curve(bare)


def test_samplers_are_lines_of_their_own_with_names():
    both = steps(1, 2) + [replace(each, figures={"fd": Figure(value=3.0)}) for each in steps(1, 2)]
    both[2:] = [
        replace(
            each,
            protocol=replace(
                each.protocol,
                samples=replace(
                    each.protocol.samples,
                    sampling=replace(each.protocol.samples.sampling, sampler="heun", guidance=1.5),
                ),
            ),
        )
        for each in both[2:]
    ]
    assert [series.name for series in series_of(both)] == ["digits-rf, euler", "digits-rf, heun, guidance 1.5"]
    drawn = curve(both)
    assert len(points(drawn, "s1")) == 3  # two, and one beside its name
    assert drawn.count("<polyline") == 2


@pytest.mark.parametrize(
    "values", [(0.0, 0.0), (0.0, 5.0), (1e-9, 1e5), (3.0, 3.0), (1e-4, 2e-4)], ids=lambda values: str(values)
)
def test_odd_values_are_drawn_within_the_picture(values):
    drawn = curve([result(value, 2 * value, samples__sampling__steps=k + 1) for k, value in enumerate(values)])
    assert "nan" not in drawn
    assert all(0 <= x <= 720 and 0 <= y <= 340 for x, y in points(drawn))
    ends = re.findall(r"V([\d.-]+)", drawn)
    assert all(0 <= float(end) <= 340 for end in ends)


def test_one_number_of_steps_is_no_curve():
    assert curve(steps(4)) == ""
    assert curve([result(samples__sampling=None)] * 2) == ""


# Refusals


def test_what_is_no_picture_or_no_result_is_refused_and_nothing_is_written(tmp_path):
    with pytest.raises(ValueError, match="no result"):
        write_report(tmp_path / "a.html", [], {}, "a")
    for image in (torch.zeros(1, 2, 2), torch.zeros(2, 2, 2, dtype=torch.uint8), torch.zeros(2, 2, dtype=torch.uint8)):
        with pytest.raises(ValueError, match="one: a picture is uint8"):
            write_report(tmp_path / "a.html", steps(1), {"one": image}, "a")
    assert list(tmp_path.iterdir()) == []
