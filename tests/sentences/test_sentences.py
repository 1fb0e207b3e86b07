import json
from pathlib import Path

import pytest
import torch

from wordsight.config import WordsightError
from wordsight.sentences import DIGITS, TEMPLATE_SETS, class_texts, fill, read_sentences, saved_sentences

CALTECH_ALIASES = Path(__file__).parents[2] / "benchmarks/aliases/caltech101.json"


def cupl(shared: Path, name: str) -> Path:
    return shared / "data/sentences/cupl/full_prompts" / name


def written(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "sentences.json"
    path.write_text(text)
    return path


def encode(texts):
    """A toy encoder: every text has its own direction, equal texts the same one."""
    seeds = [sum(ord(letter) * (i + 1) for i, letter in enumerate(text)) for text in texts]
    return torch.nn.functional.normalize(
        torch.stack([torch.randn(8, generator=torch.Generator().manual_seed(seed)) for seed in seeds]), dim=-1
    )


# templates


def test_template_sets_hold_one_place_each_and_clip7_is_part_of_clip80():
    assert all(template.count("{}") == 1 for templates in TEMPLATE_SETS.values() for template in templates)
    assert (
        len(TEMPLATE_SETS["clip7"]) == 7
        and len(set(TEMPLATE_SETS["clip80"])) == len(TEMPLATE_SETS["clip80"]) == 80
    )
    assert set(TEMPLATE_SETS["clip7"]) < set(TEMPLATE_SETS["clip80"])


def test_fill_reads_underscores_as_spaces_and_demands_one_place():
    assert fill("a photo of a {}.", "yin_yang") == "a photo of a yin yang."
    assert fill("{} texture.", "a{}b") == "a{}b texture."
    for template in ("a photo", "{} and {}", "{0}"):
        with pytest.raises(WordsightError, match="must hold it once"):
            fill(template, "cat")


def test_a_template_set_gives_every_class_its_sentences():
    read = read_sentences("clip7", ["cat", "sea_horse"])
    assert (
        list(read) == ["cat", "sea_horse"]
        and len(read["cat"]) == 7
        and "art of the sea horse." in read["sea_horse"]
    )


def test_digits_are_bundled():
    if not DIGITS.is_file():
        pytest.skip("digits.json is not there yet")
    names = list(json.loads(DIGITS.read_text()))
    assert all(read_sentences("digits", names).values())


# matching


def test_keys_match_exactly_or_by_space_and_case_and_come_in_class_order():
    table = {"Sea Horse": ["swims", " "], "cat": [" purrs\n"], "Cat": ["never used"], "unused": ["x"]}
    assert read_sentences(table, ["sea_horse", "cat"]) == {"sea_horse": ("swims",), "cat": ("purrs",)}
    assert list(read_sentences(table, ["cat", "sea_horse"])) == ["cat", "sea_horse"]
    assert read_sentences(None, ["cat"]) == {"cat": ()}


def test_blanks_around_names_and_keys_do_not_count():
    assert read_sentences({" cat ": ["x"], "big  dog": ["y"]}, ["cat", "big dog "]) == {
        "cat": ("x",),
        "big dog ": ("y",),
    }


def test_classes_without_sentences_are_all_named_with_nearest_keys():
    table = {"side of a car": ["x"], "cat": [], "dog": ["", "  "]}
    with pytest.raises(WordsightError) as error:
        read_sentences(table, ["car_side", "cat", "dog"])
    said = str(error.value)
    assert "3 of 3 classes" in said and "'car_side' (nearest keys: 'side of a car'" in said
    assert "'cat' (key 'cat' is empty)" in said and "'dog' (key 'dog' is empty)" in said
    assert '{"car_side": "side of a car"}' in said and "aliases" in said


def test_a_long_list_of_lacking_classes_is_cut_and_counted():
    with pytest.raises(WordsightError, match=r"12 of 12 classes.*'c9'.*; and 2 more\.") as error:
        read_sentences({"z": ["x"]}, [f"c{i}" for i in range(12)])
    assert "'c10'" not in str(error.value)
    with pytest.raises(WordsightError, match="1 of 1"):
        read_sentences({}, ["cat"])


def test_one_key_for_two_classes_only_by_alias():
    table = {"car side": ["x"]}
    with pytest.raises(WordsightError, match="'car_side' and 'Car Side' both match key 'car side'"):
        read_sentences(table, ["car_side", "Car Side"])
    read = read_sentences(table, ["car_side", "vehicle"], {"vehicle": "car side"})
    assert read["vehicle"] == read["car_side"]


def test_names_and_keys_are_compared_in_composed_unicode():
    composed, apart = "caf\u00e9", "cafe\u0301"
    for name, key in ((composed, apart), (apart, composed), (apart.upper(), composed)):
        assert read_sentences({key: ["x"]}, [name]) == {name: ("x",)}
        assert read_sentences({"bar": ["x"], "z": ["y"]}, [name], {name: "bar"}) == {name: ("x",)}
    with pytest.raises(WordsightError, match="occur more than once"):
        read_sentences(None, [composed, apart])
    with pytest.raises(WordsightError, match="two spellings of Unicode"):
        read_sentences({composed: ["x"], apart: ["y"]}, [composed])


def test_an_empty_key_is_nobodys_stand_in():
    assert read_sentences({"": ["x"], "cat": ["y"]}, ["cat", "dog"], partly=True) == {
        "cat": ("y",),
        "dog": (),
    }


def test_two_keys_for_one_class_need_an_alias():
    table = {"CAR_side": ["x"], "Car Side": ["y"]}
    with pytest.raises(WordsightError, match="matches 'CAR_side', 'Car Side'"):
        read_sentences(table, ["car_side"])
    assert read_sentences(table, ["car_side"], {"car_side": "Car Side"}) == {"car_side": ("y",)}


def test_unknown_alias_class_or_key_is_named():
    with pytest.raises(
        WordsightError, match=r"class 'cot', which the data does not have \(nearest classes: 'cat'\)"
    ):
        read_sentences({"cat": ["x"]}, ["cat"], {"cot": "cat"})
    with pytest.raises(
        WordsightError, match=r"key 'kat', which the sentences mapping does not have \(nearest keys: 'cat'\)"
    ):
        read_sentences({"cat": ["x"]}, ["cat"], {"cat": "kat"})
    with pytest.raises(WordsightError, match="alias table is an object"):
        read_sentences({"cat": ["x"]}, ["cat"], {"cat": ["cat"]})
    with pytest.raises(WordsightError, match="leave aliases out"):
        read_sentences("clip7", ["cat"], {"cat": "cat"})


def test_repeated_class_names_are_refused():
    with pytest.raises(WordsightError, match="'missile' occur more than once"):
        read_sentences(None, ["missile", "tank", "missile"])


# files


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", r"is empty \(0 bytes\)"),
        ('{"cat": [}', "is not JSON: .* at line 1, column 10"),
        ('["a cat"]', "holds a list; expected an object"),
        ('{"cat": "a cat"}', "'cat' holds text; expected a list of sentences"),
        ('{"cat": ["a cat", 3]}', r"'cat' holds a number \(3\) among its sentences"),
        ('{"cat": [null]}', "'cat' holds null"),
        ('{"cat": ["a"], "cat": ["b"]}', "gives 'cat' more than once"),
        (
            '{"format": "wordsight-sentences-9", "sentences": {}}',
            "this version reads 'wordsight-sentences-1'",
        ),
        (
            '{"format": "wordsight-sentences-1", "sentences": {"cat": ["a"]}}',
            "not a list of objects with a 'text'",
        ),
        ("[" * 200_000, "nested too deeply"),
    ],
)
def test_a_bad_file_is_told_in_words(tmp_path, text, said):
    with pytest.raises(WordsightError, match=said):
        read_sentences(written(tmp_path, text), ["cat"])


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[]", "holds a list"),
        ("null", "holds null"),
        ('{"cat": 3}', "'cat' holds a number"),
        ('{"cat": {"a": 1}}', "'cat' holds an object"),
        ('{"cat": [["a"]]}', "'cat' holds a list .* among its sentences"),
        ('{"cat": ["\\ud800"]}', "half a surrogate pair"),
        ("9" * 6000, "is not readable"),
        ('{"cat": [' + "[" * 20000, "nested too deeply"),
    ],
)
def test_a_runs_sentences_of_another_form_are_told_in_words(tmp_path, text, said):
    with pytest.raises(WordsightError, match=said):
        saved_sentences(written(tmp_path, text))
    assert saved_sentences(written(tmp_path, '{"cat": [], "dog": ["a"]}')) == {"cat": (), "dog": ("a",)}


def test_a_file_that_is_not_there_or_not_text(tmp_path):
    with pytest.raises(
        WordsightError, match=r"'clip8' is neither a file nor a named set \(did you mean 'clip80'"
    ):
        read_sentences("clip8", ["cat"])
    with pytest.raises(WordsightError, match="does not exist"):
        read_sentences(tmp_path / "none.json", ["cat"])
    with pytest.raises(WordsightError, match="is a folder"):
        read_sentences(str(tmp_path), ["cat"])
    (tmp_path / "latin.json").write_bytes('{"café": ["x"]}'.encode("latin-1"))
    with pytest.raises(WordsightError, match="UTF-8"):
        read_sentences(tmp_path / "latin.json", ["cat"])


def test_a_file_with_byte_order_mark_and_the_cache_format_are_read(tmp_path):
    path = tmp_path / "sentences.json"
    path.write_bytes(b'\xef\xbb\xbf{"cat": ["purrs"]}')
    assert read_sentences(str(path), ["cat"]) == {"cat": ("purrs",)}
    entry = {"question": "?", "seed": 1, "text": "purrs"}
    path = written(tmp_path, json.dumps({"format": "wordsight-sentences-1", "sentences": {"cat": [entry]}}))
    assert read_sentences(path, ["cat"]) == {"cat": ("purrs",)}


# real CuPL files


@pytest.mark.parametrize(
    ("name", "count"),
    [("pets_prompts_full.json", 20), ("texture_prompts_full.json", 60), ("cifar10_prompts_full.json", 30)],
)
def test_cupl_files_are_read_whole(shared, name, count):
    path = cupl(shared, name)
    names = [key.upper().replace(" ", "_") for key in json.loads(path.read_text())]
    read = read_sentences(path, names)
    assert list(read) == names and {len(sentences) for sentences in read.values()} == {count}


def test_cupl_lacks_eight_of_caltechs_names_and_the_alias_table_mends_it(shared):
    path, names = (
        cupl(shared, "cal_prompts_full.json"),
        json.loads((shared / "data/caltech101/classes.json").read_text())["classes"],
    )
    with pytest.raises(WordsightError) as error:
        read_sentences(path, names)
    said = str(error.value)
    assert "8 of 100 classes" in said
    for name, key in json.loads(CALTECH_ALIASES.read_text()).items():
        assert f"{name!r} (nearest keys: " in said and repr(key) in said
    read = read_sentences(path, names, CALTECH_ALIASES)
    assert len(read) == 100 and {len(sentences) for sentences in read.values()} == {30}
    assert any("automobile" in text or "car" in text for text in read["car_side"])


# text vectors


def test_class_texts_encodes_everything_in_one_call():
    calls = []
    table = {"cat": ["purrs"], "sea_horse": ["a", "b"], "x": ["c"]}
    texts = class_texts(
        lambda batch: calls.append(list(batch)) or encode(batch), ["sea_horse", "cat"], "a {}.", table
    )
    assert calls == [["a sea horse.", "a cat.", "a", "b", "purrs"]]
    assert texts.names == ("sea_horse", "cat") and texts.sentences == (("a", "b"), ("purrs",))
    assert torch.equal(texts.name_vectors, encode(["a sea horse.", "a cat."]))
    assert torch.equal(texts.sentence_vectors[0], encode(["a", "b"])) and torch.equal(
        texts.sentence_vectors[1], encode(["purrs"])
    )


def test_without_sentences_the_vectors_are_empty_and_the_mean_is_the_name():
    for sentences in (None, {"cat": [], "dog": []}):
        texts = class_texts(encode, ["cat", "dog"], "a photo of a {}.", sentences)
        assert [tuple(vectors.shape) for vectors in texts.sentence_vectors] == [(0, 8), (0, 8)]
        assert torch.allclose(texts.means(), texts.name_vectors)


def test_permuted_names_permute_the_vectors():
    sentences = {"cat": ["purrs"], "dog": ["barks", "runs"]}
    one, other = (
        class_texts(encode, ["cat", "dog"], sentences=sentences),
        class_texts(encode, ["dog", "cat"], sentences=sentences),
    )
    assert torch.equal(one.means(), other.means().flip(0)) and torch.equal(
        one.name_vectors, other.name_vectors.flip(0)
    )


def test_class_texts_fails_in_words():
    with pytest.raises(WordsightError, match="no class names"):
        class_texts(encode, [])
    with pytest.raises(WordsightError, match="no entry for 'dog'"):
        class_texts(encode, ["cat", "dog"], sentences={"cat": ["x"]})
    with pytest.raises(
        WordsightError, match=r"no unit vector for 1 of 2 texts, the first 'a photo of a dog.'"
    ):
        class_texts(lambda texts: encode(texts) * torch.tensor([[1.0], [torch.nan]]), ["cat", "dog"])
    with pytest.raises(WordsightError, match="one row for each"):
        class_texts(lambda texts: encode(texts)[:1], ["cat", "dog"])
