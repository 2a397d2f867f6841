"""What was measured alike is ranked; what was not is refused by name, or told under the table."""

import json
from dataclasses import fields, replace
from pathlib import Path

import pytest
from figures import PROTOCOL, changed, result

from genflow.evaluation.comparison import FIELDS, Entry, compare, read_entries, to_markdown
from genflow.evaluation.protocol import Figure, differences, save_results


def entries(*results) -> list[Entry]:
    return [Entry(file=f"{name}.json", result=each) for name, each in zip("abcdefgh", results, strict=False)]


def rows(text: str) -> list[dict[str, str]]:
    """The rows of a Markdown table, by the titles of its columns."""
    head, rule, *body = [line for line in text.splitlines() if line.startswith("|")]
    assert {*rule} <= {*"|-: "}
    assert len({len(line) for line in (head, rule, *body)}) == 1  # aligned
    split = [[cell.strip() for cell in line.strip("|").split(" | ")] for line in (head, *body)]
    return [dict(zip(split[0], row, strict=True)) for row in split[1:]]


OTHER = {"n": 7, "shape": (3, 9, 9), "dims": 3, "codec": "jpeg"}


def test_the_fields_to_ignore_are_those_that_results_are_held_to():
    found = {}
    for side in ("samples", "reference", "network"):
        for field in fields(getattr(PROTOCOL, side)):
            if field.name != "sampling":
                other = changed(PROTOCOL, **{f"{side}__{field.name}": OTHER.get(field.name, "other")})
                found[f"{side}.{field.name}"] = [name for name, _, _ in differences(PROTOCOL, other)]
    assert {name for name, told in found.items() if told} == {*FIELDS}
    assert all(told in ([], [name]) for name, told in found.items())


def test_the_best_distance_comes_first_whatever_the_order():
    given = entries(result(4.0), result(2.5), result(9.0))
    for order in (given, given[::-1]):
        found = rows(to_markdown(compare(order)))
        assert [row["file"] for row in found] == ["b.json", "a.json", "c.json"]
        assert [row["#"] for row in found] == ["1", "2", "3"]
        assert found[0]["FD-599[digits,uint8,raw]"] == "2.50 ± 0.20"


def test_a_row_says_how_a_model_was_sampled_and_all_that_was_measured():
    limit = Figure(value=4.0, standard_error=0.2, limit=3.5, interval=(3.1, 3.9))
    extra = {"fd": limit, "floor": Figure(value=1.6), "memorising": Figure(value=1.018), "precision": Figure(value=0.7)}
    whole = result(figures=extra, samples__sampling__steps=2, samples__sampling__calls=3)
    found = rows(to_markdown(compare(entries(whole, result(5.0, None, samples__sampling=None)))))
    assert found[0] == {
        "#": "1",
        "file": "a.json",
        "samples": "digits-rf",
        "sampler": "euler",
        "steps": "2",
        "calls": "3",
        "FD-599[digits,uint8,raw]": "4.00 ± 0.20",
        "n -> infinity": "3.50 [3.10, 3.90]",
        "over floor": "2.50x",
        "floor": "1.600",
        "memorising": "1.02",
        "precision": "0.7",
    }
    assert found[1]["sampler"] == found[1]["steps"] == found[1]["precision"] == ""
    guided = rows(to_markdown(compare(entries(whole, result(samples__sampling__guidance=1.5)))))
    assert {row["guidance"] for row in guided} == {"1", "1.5"}


def test_other_protocols_are_refused_with_every_field_both_values_and_the_way_out():
    a, b = result(), result(samples__n=5000, reference__hash="12" * 32)
    with pytest.raises(ValueError, match="measured differently") as refusal:
        compare(entries(a, a, b))
    said = str(refusal.value)
    assert "samples.n is 599 in a.json, 5000 in c.json" in said
    assert "reference.hash is abababababab in a.json, 121212121212 in c.json" in said
    assert "--ignore samples.n --ignore reference.hash" in said
    with pytest.raises(ValueError, match="measured differently") as refusal:
        compare(entries(a, b), ["samples.n"])
    assert "samples.n" not in str(refusal.value)


def test_what_is_unknown_of_one_is_a_difference_and_of_both_is_told():
    known, bare = result(), result(reference__split=None)
    with pytest.raises(ValueError, match=r"reference\.split is test in a\.json, not recorded in b\.json"):
        compare(entries(known, bare))
    text = to_markdown(compare(entries(bare, bare)))
    assert "not recorded, so that they could not be held against each other: reference.split" in text
    assert "could not be held" not in to_markdown(compare(entries(known, known)))


def test_an_ignored_difference_is_told_under_the_table():
    text = to_markdown(compare(entries(result(), result(3.0, samples__n=5000)), ["samples.n"]))
    table, remarks = text.split("\n\n")
    assert [row["figure"] for row in rows(table)] == ["FD-5k[digits,uint8,raw]", "FD-599[digits,uint8,raw]"]
    assert "NOT MEASURED ALIKE, ignored as asked: samples.n is 599 in a.json, 5000 in b.json" in remarks
    assert "the larger set has the easier figure" in remarks
    assert "samples.n 599," not in remarks  # nor is it said to be common
    assert "NOT MEASURED ALIKE" not in to_markdown(compare(entries(result(), result()), ["samples.n"]))


@pytest.mark.parametrize(
    ("name", "said"), [("sample.n", "did you mean samples.n"), ("xyzzy", "there are samples.n"), ("", "there are")]
)
def test_a_field_that_does_not_exist_is_answered_with_the_nearest(name, said):
    with pytest.raises(ValueError, match=said):
        compare(entries(result()), [name])


def test_a_distance_in_other_features_is_never_ranked_with_an_fid():
    both = entries(result(), result(network__name="inception"))
    with pytest.raises(ValueError, match=r"a\.json holds an FD .*, b\.json an FID .*different figures"):
        compare(both, [name for name in FIELDS if name.startswith("network.")])


@pytest.mark.parametrize(
    ("values", "errors", "said"),
    [
        ((4.0, 4.3), (0.2, 0.2), "1 and 2 are within error: they differ by 0.300, of which the standard error is 0.28"),
        ((4.0, 4.6), (0.2, 0.2), "Neighbours differ by more than their error"),
        ((4.0, 4.3), (0.2, None), "Where a standard error is missing, nothing can be said"),
        ((4.0, 4.0), (0.0, 0.0), "Neighbours differ by more"),
    ],
)
def test_neighbours_that_cannot_be_told_apart_are_named(values, errors, said):
    text = to_markdown(compare(entries(*(result(v, e) for v, e in zip(values, errors, strict=True)))))
    if values == (4.0, 4.0):
        assert "1 and 2 are equal" in text
    else:
        assert said in text
    assert "as if errors were independent" in text


def test_one_result_is_judged_against_nothing():
    text = to_markdown(compare(entries(result())))
    assert "independent" not in text
    assert "Neighbours" not in text


def test_the_common_protocol_stands_in_one_line():
    line = next(line for line in to_markdown(compare(entries(result(), result()))).splitlines() if "protocol:" in line)
    for part in ("599 samples", "digits-test", "split test", "ab" * 6, "1x8x8 grey uint8", "digits (weights efef"):
        assert part in line


def test_hostile_names_neither_break_the_table_nor_the_terminal():
    text = to_markdown(compare(entries(result(samples__name="a|b\n| c \x1b[2J"), result(notes=("x\ny\x1b[1A",)))))
    assert len(rows(text.replace("\\|", "//"))) == 2
    assert "\x1b" not in text
    assert "warning (2): x y" in text


def test_a_warning_of_several_results_is_told_once_with_their_places():
    text = to_markdown(compare(entries(result(3.0, notes=("few",)), result(2.0), result(1.0, notes=("few", "grey")))))
    assert "- warning (1, 3): few\n- warning (1): grey" in text


def test_results_of_one_file_are_rows_too(tmp_path):
    steps = [result(9.0 / k, samples__sampling__steps=k) for k in (1, 2, 4)]
    save_results(tmp_path / "a.json", steps)
    found = rows(to_markdown(compare(read_entries(tmp_path / "a.json", "a.json"))))
    assert [(row["file"], row["steps"]) for row in found] == [("a.json", "4"), ("a.json", "2"), ("a.json", "1")]
    assert [entry.result for entry in read_entries(tmp_path / "a.json")] == steps


def test_files_that_hold_no_distance_are_named(tmp_path):
    path: Path = tmp_path / "a.json"
    save_results(path, [])
    with pytest.raises(ValueError, match=r"a\.json is not a file"):
        read_entries(path)
    save_results(path, [replace(result(), figures={"kid": Figure(value=1.0)})])
    with pytest.raises(ValueError, match=r"a\.json is not a file"):
        read_entries(path)
    save_results(path, [result()])
    record = json.loads(path.read_text())
    for field, value in (("value", float("nan")), ("standard_error", float("inf")), ("interval", [0.0, float("nan")])):
        damaged = json.loads(json.dumps(record))
        damaged["results"][0]["figures"]["fd"][field] = value
        path.write_text(json.dumps(damaged))
        with pytest.raises(ValueError, match=r"a\.json"):
            read_entries(path)
