import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from genflow.data.folder import image_folder
from genflow.data.images import load_images
from genflow.data.labels import match_labels

FILES = ("00000/a.png", "00000/b.png", "00001/c.png")


def edm(*entries: object) -> str:
    return json.dumps({"labels": list(entries)})


def test_labels_go_by_name_whatever_their_order():
    labels, names = match_labels(edm(["00001/c.png", 0], ["00000/a.png", 2], ["00000/b.png", 1]), "dataset.json", FILES)
    assert labels == (2, 1, 0)
    assert names == ("0", "1", "2")
    text = "file,label\r\n00001/c.png,0\r\n00000/a.png,1\r\n\r\n00000/b.png,1\r\n"
    assert match_labels(text, "x.csv", FILES) == ((1, 1, 0), ("0", "1"))


def test_null_is_unlabelled():
    assert match_labels('{"labels": null}', "dataset.json", FILES) == (None, ())


def test_names_are_numbered_in_alphabetical_order():
    text = 'file,label\n00000/a.png,dog\n00000/b.png,"cat, grey"\n00001/c.png,7\n'
    assert match_labels(text, "x.csv", FILES) == ((2, 1, 0), ("7", "cat, grey", "dog"))


def test_spaces_around_labels_do_not_count():
    text = "file, label\n00000/a.png, 1\n00000/b.png,0 \n00001/c.png,\t1\n"
    assert match_labels(text, "x.csv", FILES) == ((1, 0, 1), ("0", "1"))


FULL = [[file, 0] for file in FILES]


@pytest.mark.parametrize(
    ("where", "text", "message"),
    [
        ("d.json", "[1, 2", "d.json is not JSON"),
        ("d.json", "[]", 'd.json must hold {"labels"'),
        ("d.json", '{"label": []}', 'd.json must hold {"labels"'),
        ("d.json", '{"labels": {"a": 1}}', "must be null or a list"),
        ("d.json", edm(*FULL[:2]), "no label for 00001/c.png"),
        ("d.json", edm(), "no label for 00000/a.png, 00000/b.png, 00001/c.png"),
        ("d.json", edm(*FULL, ["z.png", 0]), "labels z.png, but there is no such image"),
        ("d.json", edm(*FULL, FULL[0]), "labels 00000/a.png twice"),
        ("d.json", edm([0, "00000/a.png"]), r"entry 0 must be \[.path., label\].*got \[0, "),
        ("d.json", edm(["00000/a.png", 1.5]), "entry 0 .* whole number"),
        ("d.json", edm(["00000/a.png", True]), "entry 0 .* whole number"),
        ("d.json", edm(["00000/a.png", [0, 1]]), "entry 0 .* whole number"),
        ("d.json", edm(["/00000/a.png", 1]), "must be a path relative to the images"),
        ("d.json", edm(["../a.png", 1]), "must be a path relative to the images"),
        ("d.json", edm(*FULL[:2], [FILES[2], -1]), "holds the label -1: labels count from 0"),
        ("d.json", edm(*FULL[:2], [FILES[2], 2]), "labels up to 2, but no image of class 1"),
        ("d.json", edm(*FULL[:2], [FILES[2], 10**18]), "labels up to 10+, but no image of class 1"),
        ("d.csv", "", "must begin with the line file,label, got nothing"),
        ("d.csv", "name,label\na,1\n", "must begin with the line file,label, got name,label"),
        ("d.csv", "file,label\n00000/a.png\n", "line 2 must be a file and its label, got '00000/a.png'"),
        ("d.csv", "file,label\n00000/a.png,\n", "line 2 must be a file and its label"),
        ("d.csv", 'file,label\n"00000/a.png,1\n', "d.csv is not CSV"),
        ("d.csv", "file,label\n00000/a.png, \n", "line 2 must be a file and its label"),
        (
            "d.csv",
            "file,label\n00000/a.png,cat\n00000/b.png,1.5\n",
            "d.csv: line 3 has the label '1.5', but labels are",
        ),
        ("d.csv", "file,label\n00000/a.png,1e3\n", "line 2 has the label '1e3'"),
        ("d.csv", "file,label\n00000/a.png,nan\n", "line 2 has the label 'nan'"),
        ("d.csv", f"file,label\n00000/a.png,{'9' * 5000}\n", "d.csv holds a label of 5000 digits"),
        ("d.json", '{"labels": [["00000/a.png", ' + "9" * 5000 + "]]}", "d.json is not JSON"),
        ("d.csv", 'file,label\n"a\nb.png",1\n', r"labels 'a\\nb.png', but there is no such image"),
        ("d.csv", "file,label\n00000/a.png,-2\n00000/b.png,0\n00001/c.png,0\n", "holds the label -2"),
    ],
)
def test_labels_that_do_not_fit(where: str, text: str, message: str):
    with pytest.raises(ValueError, match=message) as caught:
        match_labels(text, where, FILES)
    assert "\n" not in str(caught.value)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for n, file in enumerate(FILES):
        path = tmp_path / "set" / file
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((4, 4), n, np.uint8)).save(path)
    return tmp_path / "set"


def test_a_folder_is_labelled_by_its_own_file_or_by_the_one_given(root: Path, tmp_path: Path):
    cache = tmp_path / "cache"
    assert image_folder(root, cache=cache).class_names == ("00000", "00001")
    (root / "dataset.json").write_text(edm(["00001/c.png", 0], ["00000/a.png", 2], ["00000/b.png", 1]))
    data = image_folder(root, cache=cache)
    assert data.labels is not None
    assert data.labels.tolist() == [2, 1, 0]
    assert data.images[:, 0, 0, 0].tolist() == [0, 1, 2]
    table = tmp_path / "table.csv"
    table.write_text("\ufefffile,label\n00000/a.png,x\n00000/b.png,y\n00001/c.png,x\n", encoding="utf-8")
    other = load_images(root, labels=str(table), cache=cache)
    assert other.class_names == ("x", "y")
    assert len(list((cache / "images").iterdir())) == 1, "labels do not have images decoded again"
    assert len({data.fingerprint, other.fingerprint}) == 2
    (root / "dataset.json").write_text('{"labels": null}')
    assert image_folder(root, cache=cache).labels is None


def test_files_of_labels_that_cannot_be_read(root: Path, tmp_path: Path):
    with pytest.raises(ValueError, match=r"must be a \.json file .* or a \.csv file"):
        image_folder(root, labels=tmp_path / "labels.txt")
    with pytest.raises(ValueError, match=r"cannot read the labels .*absent\.csv"):
        image_folder(root, labels=tmp_path / "absent.csv")
    (tmp_path / "binary.csv").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ValueError, match=r"cannot read the labels .*binary\.csv"):
        image_folder(root, labels=tmp_path / "binary.csv")
    with pytest.raises(ValueError, match="goes with a folder or zip of images, and 'digits' is none"):
        load_images("digits", labels="x.csv")
