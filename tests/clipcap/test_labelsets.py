"""Label sets: what a file may say, what is wrong with it in which line, and what is bundled."""

from __future__ import annotations

import json
import time
import tomllib
from fnmatch import fnmatch
from pathlib import Path

import numpy as np
import pytest
from open_clip import zero_shot_metadata
from torch import Tensor

from clipcap import embedding
from clipcap.embedding import Speed
from clipcap.errors import SettingsError
from clipcap.labels import bank, check, files, scoring, sets, templates
from clipcap.labels.files import Written
from clipcap.labels.notes import notes
from clipcap.labels.sets import Label, LabelSet
from tests.nights import Tiny, make_tiny

BUNDLED = sets.bundled()
ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Tiny:
    """A random encoder."""
    return make_tiny(tmp_path_factory.mktemp("tiny"))


def told(folder: Path, text: str, *, name: str = "own.toml") -> list[str]:
    """Return every problem of a file."""
    (folder / name).write_text(text, encoding="utf-8")
    found, problems = sets.read(str(folder / name))
    assert (found is None) == bool(problems)
    return [str(one) for one in problems]


class TestBundled:
    """What comes with the project."""

    @pytest.mark.parametrize("name", BUNDLED)
    def test_it_is_right_and_signed(self, name: str) -> None:
        found, problems = sets.read(name)
        assert problems == []
        assert found is not None
        assert found.name == name
        assert found.source
        assert found.licence
        assert [note for note in notes(found) if "tokens" in note or "no source" in note] == []
        assert check.text_count(found) == sum(map(len, found.texts()))

    @pytest.mark.parametrize("name", templates.bundled())
    def test_a_template_list_has_one_place_in_each_sentence(self, name: str) -> None:
        found = templates.load(name)
        assert all(one.count("{}") == 1 for one in found.templates)
        assert len(set(found.templates)) == len(found.templates)
        assert found.source
        assert found.licence

    def test_imagenet_is_encoded_by_the_very_texts_of_open_clip(self) -> None:
        """Two names of the list stand twice; only what tables say is made distinct."""
        names = zero_shot_metadata.IMAGENET_CLASSNAMES
        sentences = zero_shot_metadata.OPENAI_IMAGENET_TEMPLATES
        found = sets.load("imagenet_1k")
        assert found.texts() == [[one(name) for one in sentences] for name in names]
        different = [(n, found.names[n]) for n in range(1000) if found.names[n] != names[n]]
        assert different == [(744, "projectile"), (836, "sunglass")]
        assert len(templates.load("imagenet_7").templates) == 7

    def test_coco_has_its_80_categories_first_and_then_their_kinds(self) -> None:
        found = sets.load("coco_80")
        assert [one.parent != "" for one in found.labels] == [True] * 80 + [False] * 12
        assert found.groups == set(found.names[80:])
        assert (found.names[0], found.names[79]) == ("person", "toothbrush")

    def test_the_screen_compares_with_ordinary_things(self) -> None:
        found = sets.load("safety")
        assert found.multi_label
        assert len(found.background) > len(found.labels)

    def test_every_file_is_installed(self) -> None:
        asked = tomllib.loads((ROOT / "pyproject.toml").read_text())
        globs = asked["tool"]["setuptools"]["package-data"]["clipcap"]
        paths = [path.relative_to(ROOT / "clipcap") for path in sets.FOLDER.rglob("*.*")]
        assert len(paths) > 10
        assert all(any(fnmatch(str(path), one) for one in globs) for path in paths)


class TestWritten:
    """What a file may say."""

    def test_templates_may_be_named(self, tmp_path: Path) -> None:
        (tmp_path / "own.toml").write_text(
            'templates = "imagenet_7"\n'
            'names = ["cat", { name = "kiosk", templates = "plain", text = "a stall" }]\n'
        )
        found = sets.load(str(tmp_path / "own.toml"))
        assert found.texts()[0][1] == "a bad photo of the cat."
        assert found.texts()[1] == ["a stall"]
        assert found.name == "own"

    def test_groups_have_no_texts_and_no_vector(self, tiny: Tiny) -> None:
        label_set = LabelSet(
            labels=(
                Label(name="cat", parent="pet"),
                Label(name="pet"),
                Label(name="dog", parent="pet", synonyms=("hound",)),
            ),
            background=("house",),
        )
        encoder = embedding.load(tiny.encoder, Speed())
        assert list(map(len, label_set.texts())) == [1, 0, 2, 1]
        vector_CD = bank.encoded(label_set, encoder)
        texts = ["a photo of a dog.", "a photo of a hound."]
        dog_MD = encoder.encode_texts(texts).numpy()
        dog_D = (dog_MD / np.linalg.norm(dog_MD, axis=1, keepdims=True)).sum(axis=0)
        dog_D /= np.linalg.norm(dog_D)
        np.testing.assert_allclose(vector_CD[2], dog_D, atol=1e-6)
        made = bank.in_words(label_set, vector_CD, scale=10.0)
        assert not made.vector_CD[1].any()
        assert (made.gain_C[1], made.shift_C[1]) == (0, -np.inf)
        _, score_BC = scoring.whole(vector_CD[[0, 2]], made)
        np.testing.assert_allclose(score_BC[:, 1], score_BC[:, [0, 2]].sum(axis=1), atol=1e-6)
        np.testing.assert_allclose(score_BC[:, [1, 3]].sum(axis=1), 1, atol=1e-6)

    def test_texts_of_many_labels_are_encoded_some_at_a_time(self) -> None:
        most = 0

        class Counting:
            dim = 3

            def encode_texts(self, texts: list[str]) -> Tensor:
                nonlocal most
                most = max(most, len(texts))
                return Tensor([[float(len(text)), 1.0, float(text[-2])] for text in texts])

        label_set = LabelSet.model_validate({"names": [f"label {n}" for n in range(1000)]})
        vector_CD = bank.encoded(label_set, Counting())  # type: ignore[arg-type]
        assert most < 300
        assert vector_CD.shape == (1000, 3)
        np.testing.assert_allclose(np.linalg.norm(vector_CD, axis=1), 1, atol=1e-6)
        assert vector_CD[999, 2] / vector_CD[999, 1] == pytest.approx(9)


class TestProblems:
    """What a file may not say."""

    def test_all_are_told_at_once_with_their_lines(self, tmp_path: Path) -> None:
        found = told(
            tmp_path,
            'templates = ["a {}", "no place", "{} and {}"]\n'
            'background = ["Cat", "", "stone"]\n'
            "treshold = 0.5\n"
            "threshold = nan\n"
            'scores = "soft"\n'
            "[[names]] # the first\n"
            'name = "cat"\n'
            'parent = "anmal"\n'
            "threshold = 1.5\n"
            'synonyms = ["kitty", "hotdog"]\n'
            "[[names]]\n"
            'name = "hot  dog"\n'
            "[[names]]\n"
            'name = "animal"\n'
            'templates = "imagenet_8"\n'
            "[[names]]\n"
            'name = "bird"\n'
            'parent = "animal"\n'
            'colour = "red"\n'
            "[[names]]\n"
            'name = " bird"\n',
        )
        expected = [
            "line 1: the template 'no place' must hold one {}, but has 0",
            "line 1: the template '{} and {}' must hold one {}, but has 2",
            "line 2: the background name 'Cat' stands twice (also as a name in line 7, where it is "
            "'cat': only case or spaces differ)",
            "line 2: the background name is empty",
            "line 3: there is no field `treshold`. Did you mean `threshold`?",
            "line 4: `threshold` must be a number from 0 to 1, but is nan",
            "line 5: `scores`: Input should be 'model', 'softmax' or 'sigmoid', but it is 'soft'",
            "line 8: the parent 'anmal' is no label of the set. Did you mean 'animal'?",
            "line 9: `names[0].threshold` must be a number from 0 to 1, but is 1.5",
            "line 10: the synonym 'hotdog' stands twice (also as a name in line 12, where it is "
            "'hot  dog': only case or spaces differ)",
            "line 15: No template list 'imagenet_8'. Did you mean imagenet_80? Known: "
            f"{', '.join(templates.bundled())}.",
            "line 15: the label 'animal' is a parent: its score is the sum of its children's, and "
            "`templates` of its own is never read",
            "line 19: there is no field `colour`. Known: name, text, synonyms, templates, parent, "
            "threshold.",
            "line 21: the name ' bird' begins or ends with a space",
            "line 21: the name ' bird' stands twice (also as a name in line 17, where it is "
            "'bird': only case or spaces differ)",
        ]
        assert sorted(found) == sorted(expected)
        assert found[0].startswith("line 1:")
        assert found[-1].startswith("line 21:")

    def test_a_truth_value_or_a_text_is_no_threshold(self, tmp_path: Path) -> None:
        found = told(
            tmp_path,
            'threshold = true\nnames = ["a", "b",\n{ name = "c", threshold = false },\n'
            '{ name = "d", threshold = "0.5" }, { name = "e", threshold = 1 }]\n',
        )
        assert found == [
            "line 1: `threshold` must be a number from 0 to 1, but is True",
            "line 3: `names[2].threshold` must be a number from 0 to 1, but is False",
            "line 4: `names[3].threshold` must be a number from 0 to 1, but is '0.5'",
        ]

    def test_a_text_is_no_truth_value(self, tmp_path: Path) -> None:
        """Which is true as a text, and false as what it says."""
        found = told(tmp_path, 'names = ["cat"]\nmulti_label = "no"\n')
        assert found == ["line 2: `multi_label`: Input should be a valid boolean, but it is 'no'"]

    def test_json_has_lines_too(self, tmp_path: Path) -> None:
        text = (
            '{"names": ["a",\n "b", {"name": "c", "parent": "d",\n  "threshold": 2},\n "A"],\n'
            '"templates": "nope",\n"templates": ["x {}"]}'
        )
        assert told(tmp_path, text, name="own.json") == [
            "line 2: the parent 'd' is no label of the set.",
            "line 3: `names[2].threshold` must be a number from 0 to 1, but is 2",
            "line 4: the name 'A' stands twice (also as a name in line 1, where it is 'a': only "
            "case or spaces differ)",
            "line 6: the key `templates` stands twice",
        ]

    def test_a_circle_of_parents_is_told_once_with_its_names(self, tmp_path: Path) -> None:
        rows = ["q", "a", "b", "c"], ["a", "b", "c", "a"]
        labels = [
            f'{{ name = "{name}", parent = "{over}" }}' for name, over in zip(*rows, strict=True)
        ]
        lines = ",\n".join(labels)
        found = told(tmp_path, f'names = ["x",\n{lines},\n{{ name = "s", parent = "s" }}]')
        assert found == [
            "line 3: the parents go in a circle: 'a' -> 'b' -> 'c' -> 'a'",
            "line 6: the label 's' is its own parent",
        ]

    def test_a_taxonomy_has_few_levels(self, tmp_path: Path) -> None:
        lines = [f'{{ name = "n{n}", parent = "n{n - 1}" }},' for n in range(1, 3_000)]
        text = "\n".join(["names = ['n0', 'x',", *lines])
        assert told(tmp_path, text + "]") == ["line 101: 'n100' has 100 labels above it: too many"]
        assert told(tmp_path, "\n".join(text.split("\n")[:100]) + "]") == []

    @pytest.mark.parametrize("more", ['background = ["dog"]', 'scores = "sigmoid"'])
    def test_one_label_needs_something_to_compare_with(self, tmp_path: Path, more: str) -> None:
        [problem] = told(tmp_path, 'names = ["cat"]')
        assert "a softmax over one is always 1" in problem
        grouped = 'names = ["pet", { name = "cat", parent = "pet" }]'
        assert "line 1: 'cat' is the only label to score" in told(tmp_path, grouped)[0]
        assert told(tmp_path, f'{more}\nnames = ["cat"]') == []

    @pytest.mark.parametrize(
        ("text", "problem"),
        [
            ("names = []", "line 1: `names` must hold at least one, but is empty"),
            ('names = ["a", "b"]\ntemplates = []', "line 2: `templates` must hold at least one"),
            ("threshold = 0.5\n", "line 1: `names` must be given, but is not"),
            ('names = ["a", 5]', "line 1: `names[1]`"),
            ('names = ["a",\n"b"]\nname = "a b"', "line 3: `name` must be 60 letters"),
            ('names = ["a",\n"b"]\nname = ".."', "line 3: `name` must be 60 letters"),
            (f'names = ["a",\n"b"]\nname = "{"a" * 61}"', "line 3: `name` must be 60 letters"),
            ('names = ["a",\n"b\\u0007"]', "line 2: there is the character U+0007 in 'b\\x07'"),
            ('names = ["a",\n"b]', "line 2: it cannot be read"),
            ('names = ["a",\n"b"\n', "line 3: it cannot be read"),
        ],
    )
    def test_one_problem_has_its_sentence(self, tmp_path: Path, text: str, problem: str) -> None:
        assert told(tmp_path, text)[0].startswith(problem)

    @pytest.mark.parametrize(
        ("data", "problem"),
        [
            (b'names = ["a",\n"caf\xe9"]', "line 2: the byte 0xe9 is no UTF-8"),
            (b'names = ["a",\n"b\0"]', "line 2: there is a NUL character"),
            ("\ufeffnames = ['a', 'b']".encode("utf-16"), "line 1: the byte 0xff is no UTF-8"),
            (b"a = " + b"[" * 5000, "line 1: it is nested too deeply"),
            (b"a." * 20_000 + b"b = 1", "line 1: it is nested too deeply"),
            (b"[" + b"'a' . " * 2_000 + b"b]", "line 1: it is nested too deeply"),
        ],
    )
    def test_what_is_no_text(self, tmp_path: Path, data: bytes, problem: str) -> None:
        (tmp_path / "own.toml").write_bytes(data)
        _, found = sets.read(str(tmp_path / "own.toml"))
        assert str(found[0]).startswith(problem)

    def test_json_that_is_no_object_or_too_deep(self, tmp_path: Path) -> None:
        assert "must hold an object, but is a list" in told(tmp_path, "[]", name="o.json")[0]
        deep = '{"names": ["a", "b"], "x": ' + "[" * 400 + "]" * 400 + "}"
        assert told(tmp_path, deep, name="o.json")[0].startswith("line 1: there is no field `x`")

    def test_dots_in_texts_and_remarks_are_no_depth(self, tmp_path: Path) -> None:
        dots = "a." * 50
        assert told(tmp_path, f"names = ['{dots}', 'b'] # {dots}\nlicence = \"{dots}\"") == []

    def test_a_byte_order_mark_does_no_harm(self, tmp_path: Path) -> None:
        assert told(tmp_path, "\ufeffnames = ['a', 'b']\r\n") == []

    def test_a_million_labels_are_refused_at_once(self, tmp_path: Path) -> None:
        names = ",\n".join(f'"label {n}"' for n in range(1_000_000))
        began = time.process_time()
        [problem] = told(tmp_path, f"# all\nnames = [{names}]")
        assert time.process_time() - began < 10
        assert problem.startswith("line 2: a label set must have at most 100,000 labels, but this")
        assert "fewer templates" in problem

    def test_too_many_texts_are_refused(self, tmp_path: Path) -> None:
        names = ", ".join(f'"label {n}"' for n in range(30_000))
        [problem] = told(tmp_path, f'names = [{names}]\ntemplates = "imagenet_80"')
        assert problem.startswith("line 2: labels, synonyms and templates must make at most 2,000")

    def test_a_file_that_is_far_too_large_is_not_read(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        (tmp_path / "own.toml").write_bytes(b"#" * (3 << 20))
        monkeypatch.setattr(files, "MOST_BYTES", 1 << 20)
        with pytest.raises(SettingsError, match=r"at most 1 MiB, but .* has 3"):
            sets.load(str(tmp_path / "own.toml"))

    def test_twenty_thousand_labels_are_checked_in_seconds(self, tmp_path: Path) -> None:
        labels = [
            f'[[names]]\nname = "label {n}"\nsynonyms = ["syn {n}"]\nparent = "group {n % 100}"\n'
            for n in range(20_000)
        ]
        groups = [f'[[names]]\nname = "group {n}"\n' for n in range(100)]
        text = "".join([*labels, *groups, '[[names]]\nname = "Label 77"\n'])
        began = time.process_time()
        [problem] = told(tmp_path, text)
        assert time.process_time() - began < 5
        assert problem.startswith("line 80202: the name 'Label 77' stands twice")

    def test_an_error_tells_some_and_how_many_more(self, tmp_path: Path) -> None:
        twice = ",\n".join(['"cat"'] * 50)
        (tmp_path / "own.toml").write_text(f"names = [{twice}]")
        with pytest.raises(SettingsError) as caught:
            sets.load(str(tmp_path / "own.toml"))
        text = str(caught.value)
        assert "has 49 problems" in text
        assert "and 29: `clipcap labels check` shows all" in text
        assert text.endswith('templates = ["a photo of a {}."]')


class TestLines:
    """Where a value stands."""

    def test_every_form_of_toml(self) -> None:
        text = (
            "# 'a' [\n"
            'a.b = "x = 1" # = 2\n'
            "'quoted key' = 2026-11-21 07:32:00\n"
            'long = """\n["" "two\n""""\n'
            "raw = '''\n'one'\n'''\n"
            "list = [ # of\n  1, [ 2,\n  3 ], { c = 1.5, d.e = 'z' },\n]\n"
            "[t]\nu = true\n"
            "[[names]]\n[names.more]\nv = 1\n"
            "[[names]]\nname = 'n'\n"
        )
        written = files.parsed(text.encode(), is_json=False)
        assert isinstance(written, Written)
        expected = {
            ("a", "b"): 2, ("quoted key",): 3, ("long",): 4, ("raw",): 7, ("list",): 10,
            ("list", 0): 11, ("list", 1, 1): 12, ("list", 2, "c"): 12, ("list", 2, "d", "e"): 12,
            ("t",): 14, ("t", "u"): 15, ("names", 0, "more", "v"): 18, ("names", 1): 19,
            ("names", 1, "name"): 20, ("names", 1, "gone"): 19, ("gone",): 1,
        }  # fmt: skip
        assert {path: written.line(path) for path in expected} == expected

    def test_every_value_of_json(self) -> None:
        value = {"a": [1, {"b\n": None, "c": "}, ["}], "d": {"e": [[], {}, -1.5e3, True]}}
        text = json.dumps(value, indent=1)
        written = files.parsed(text.encode(), is_json=True)
        assert isinstance(written, Written)
        lines = text.splitlines()
        assert lines[written.line(("a", 1, "b\n")) - 1].strip() == '"b\\n": null,'
        assert lines[written.line(("d", "e", 2)) - 1].strip() == "-1500.0,"
        assert written.doubled() == []


class TestNotes:
    """What is allowed."""

    def test_what_is_allowed_but_seldom_meant(self) -> None:
        words = " ".join(["word"] * 80)
        label_set = LabelSet(
            labels=(
                Label(name="ice cream"),
                Label(name="ice-creams"),
                Label(name="kind", text="ice cream"),
                Label(name="long", text=words),
            ),
            templates=("a {}.", "a {}."),
        )
        found = notes(label_set)
        assert [one for one in found if "'ice cream' and 'ice-creams': names" in one]
        assert [one for one in found if "'ice cream' and 'kind': encoded by the same texts" in one]
        assert [one for one in found if "'a {}.': a template that stands twice" in one]
        assert [one for one in found if "about 109 tokens" in one]
        assert [one for one in found if "no source and no licence" in one]
        assert len(found) == 5


def test_the_example_of_the_page_is_right(tmp_path: Path) -> None:
    page = (ROOT / "docs" / "labels.md").read_text()
    assert told(tmp_path, page.partition("```toml\n")[2].partition("```")[0]) == []
