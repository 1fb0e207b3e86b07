"""The HTTP API gives what the command line gives, and says in words what cannot be."""

import json
import re
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from serving import as_image, files_of, refused
from sklearn.datasets import load_digits

import wordsight
from wordsight.cli import main
from wordsight.prediction import predict
from wordsight.serve.models import REMEMBERED, Model, Over, open_parts
from wordsight.serve.refused import plain
from wordsight.serve.settings import Limits


def classified(client, files, **data):
    answer = client.post("/v1/classify", files=files_of(files), data=data)
    assert answer.status_code == 200, answer.text
    return answer.json()


def entries(run, files, top=5, explain=0, **more):
    answers = predict(run, list(map(str, files)), explain=explain, **more)
    found = [answers.entry(answer, top) for answer in answers]
    return [entry | {"image": entry["image"].rpartition("/")[2]} for entry in found]


def same(one, other):
    """Equal, numbers to a rounding."""
    assert [entry["image"] for entry in one] == [entry["image"] for entry in other]
    for left, right in zip(one, other):
        assert set(left) == set(right)
        assert [chance["class"] for chance in left["classes"]] == [c["class"] for c in right["classes"]]
        for near, far in zip(left["classes"], right["classes"]):
            assert near["probability"] == pytest.approx(far["probability"], abs=2e-4)
        for name in ("sentences", "decisive"):
            texts = [re.sub(r"-?\d\.\d+", "", json.dumps(entry.get(name))) for entry in (left, right)]
            assert texts[0] == texts[1]


def test_it_gives_what_predict_gives(client, digits_run, digit_files):
    same(classified(client, digit_files)["results"], entries(digits_run, digit_files))
    told = classified(client, digit_files, top=2, explain=3)["results"]
    same(told, entries(digits_run, digit_files, 2, 3))
    names = ["a snowman", "one", "a tree"]
    own = classified(client, digit_files, classes=names, top=3)
    assert own["class_names"] == names
    same(own["results"], entries(digits_run, digit_files, 3, classes=names))
    assert classified(client, digit_files[:1], classes=json.dumps(names))["class_names"] == names
    more = classified(client, digit_files, add=["a snowman"], top=11)
    assert more["class_names"][-2:] == ["nine", "a snowman"]
    same(more["results"], entries(digits_run, digit_files, 11, add=["a snowman"]))


def test_answers_that_are_not_certain_are_marked(client, digits_run, digit_files):
    best = [one["classes"][0]["probability"] for one in entries(digits_run, digit_files)]
    middle = sorted(best)[4]
    told = classified(client, digit_files, unsure=middle)["results"]
    expected = entries(digits_run, digit_files, unsure=middle)
    assert [one["unsure"] for one in told] == [one["unsure"] for one in expected]
    assert {True, False} == {one["unsure"] for one in told}
    assert [one.get("unlike") for one in told] == [one.get("unlike") for one in expected]
    image = files_of(digit_files[:1])
    assert "error= needs images" in refused(client, 400, files=image, data={"error": 0.1})
    assert "give one of them" in refused(client, 400, files=image, data={"error": 0.1, "unsure": 0.5})


@pytest.mark.slow
def test_sets_hold_for_the_words_that_they_were_calibrated_with(served, digit_files, tmp_path):
    digits, names = load_digits(), [str(digit) for digit in range(10)]
    clf = wordsight.Classifier("micro", "zero_shot", class_names=names, device="cpu")
    images = [as_image(one) for one in digits.images[:40]]
    clf.fit(images[:20], digits.target[:20]).calibrate(images[20:], digits.target[20:40])
    client, image = served(clf.save(tmp_path / "sure")), files_of(digit_files[:1])
    assert classified(client, digit_files[:1], error=0.1, classes=names[::-1])["results"][0]["set"]
    for more in (
        {"add": ["x"]},
        {"classes": names[:3]},
        {"sentences": json.dumps({"1": ["a straight line"]})},
    ):
        assert "own classes and words" in refused(client, 422, files=image, data={"error": 0.1, **more})


def test_sentences_of_a_request_count(client, digits_run, digit_files, tmp_path):
    told = {"snowman": ["Two round rings, one on the other."], "tree": ["A stem with a crown."]}
    (tmp_path / "told.json").write_text(json.dumps(told))
    own = classified(client, digit_files, classes=list(told), sentences=json.dumps(told), explain=1)
    expected = entries(
        digits_run, digit_files, explain=1, classes=list(told), sentences=str(tmp_path / "told.json")
    )
    same(own["results"], expected)
    assert [own["results"][0]["sentences"][0]["sentence"]] in list(told.values())


@pytest.mark.slow
def test_many_at_once_give_what_one_gives_and_share_batches(client, digit_files):
    alone = [classified(client, [file])["results"][0] for file in digit_files]
    with ThreadPoolExecutor(16) as pool:
        together = list(pool.map(lambda file: classified(client, [file])["results"][0], digit_files * 4))
    same(together, alone * 4)
    sizes = re.findall(r'wordsight_batch_size_bucket\{le="1.0",model="digits"\} (\S+)', metrics(client))
    count = re.findall(r'wordsight_batch_size_count\{model="digits"\} (\S+)', metrics(client))
    assert float(sizes[0]) < float(count[0]), "some batch held several images"


def metrics(client):
    return client.get("/metrics").text


def test_large_images_are_decoded_by_themselves_with_the_same_answer(client, digit_files, monkeypatch):
    alone = classified(client, digit_files)
    monkeypatch.setattr("wordsight.serve.service.LARGE", 1)
    assert classified(client, digit_files) == alone
    broken = client.post("/v1/classify", files={"images": ("a.png", b"no image")})
    assert "not an image" in broken.json()["results"][0]["error"]


def test_an_image_that_cannot_be_read_does_not_end_the_rest(client, digit_files):
    files = [("images", ("../x\\no.png", b"no image")), *files_of(digit_files[:1])]
    answer = client.post("/v1/classify", files=files).json()["results"]
    assert answer[0] == {"image": "no.png", "error": "not an image, or of a kind that Pillow does not read"}
    assert "classes" in answer[1]


def test_vectors_are_those_that_features_are_made_of(client, digit_files):
    answer = client.post("/v1/embed", files=files_of(digit_files)).json()
    backbone = wordsight.load_backbone("micro", device="cpu")
    assert answer["dim"] == backbone.dim and len(answer["embeddings"]) == len(digit_files)
    own = wordsight.Classifier("micro", device="cpu").encode([str(file) for file in digit_files])
    assert np.array(answer["embeddings"]) == pytest.approx(own, abs=2e-6)
    texts = client.post("/v1/embed", json={"texts": ["three", "four"]}).json()
    assert np.array(texts["embeddings"]) == pytest.approx(
        backbone.encode_text(["three", "four"]).numpy(), abs=2e-6
    )
    assert "null" in client.post("/v1/embed", files={"images": ("a.png", b"")}).text


def test_the_models_are_told(client):
    (card,) = client.get("/v1/models").json()["data"]
    assert card["id"] == "digits" and card["abilities"] == ["classify", "embed"]
    assert card["class_names"][3] == "three" and card["limits"]["max_images"] == 32


def test_nothing_of_a_request_stays_on_the_disk(client, digit_files, tmp_path, monkeypatch):
    monkeypatch.setenv("WORDSIGHT_CACHE", str(tmp_path / "cache"))
    classified(client, digit_files, classes=["something", "nothing that was ever asked"])
    client.post("/v1/embed", json={"texts": ["a text that was never asked"]})
    assert not (tmp_path / "cache").exists()


def test_what_cannot_be_is_said_in_words(client, digit_files):
    image = files_of(digit_files[:1])
    assert "there is none" in refused(client, 422, data={"top": 1})
    assert "'x' is not served; digits are" in refused(client, 404, files=image, data={"model": "x"})
    assert "greater than or equal to 1" in refused(client, 422, files=image, data={"top": 0})
    assert "at least 2 names" in refused(client, 422, files=image, data={"classes": ["one"]})
    one = refused(client, 422, files=image, data={"classes": ["one"]})
    assert "none of its own" not in one, "it has ten"
    for same in ("a", "a\u200b"):
        assert "stands there twice" in refused(client, 422, files=image, data={"classes": ["a", same]})
    assert "on one line" in refused(client, 422, files=image, data={"classes": ["a", "b\nc"]})
    assert "send a file, with curl -F images=@NAME" in refused(client, 422, data={"images": "a.jpg"})
    assert "control character \\x07" in refused(client, 422, files=image, data={"classes": ["a", "b\7"]})
    assert "half a surrogate" in refused(client, 422, files=image, data={"classes": '["a", "\\ud800"]'})
    assert "is not JSON" in refused(client, 422, files=image, data={"classes": "[1, 2"})
    assert "is among neither" in refused(client, 422, files=image, data={"sentences": '{"x": ["y"]}'})
    assert "10000 names are more than 1000" in refused(
        client, 413, files=image, data={"classes": json.dumps([str(n) for n in range(10_000)])}
    )
    assert "signs is longer than 200" in refused(client, 413, files=image, data={"classes": ["a" * 201, "b"]})
    assert "33 images are more than 32" in refused(client, 413, files=files_of(digit_files[:1] * 33))
    assert "no host is allowed" in refused(client, 400, data={"urls": ["http://127.0.0.1/a.png"]})
    assert "Not Found" in client.get("/nothing").json()["error"]["message"]
    assert client.get("/v1/classify").json()["error"]["code"] == 405


def test_paths_of_this_machine_are_told_to_nobody():
    assert plain("in /home/me/runs/a.safetensors: damaged") == "in a.safetensors: damaged"
    assert plain("'/tmp/x/y' is and/or 1/2 http://a/b/c") == "'y' is and/or 1/2 http://a/b/c"


def test_a_run_that_cannot_be_served_ends_the_command_in_a_sentence(tmp_path, capsys):
    assert main(["serve", str(tmp_path)]) == 2
    assert "holds neither" in capsys.readouterr().err


def test_the_page_shows_what_the_server_says(client):
    answer = client.get("/")
    assert "<title>" in answer.text and "sha256-" in answer.headers["content-security-policy"]


def test_eight_sets_of_classes_stay_encoded_however_they_are_asked_about(digits_run):
    model = Model("digits", open_parts(str(digits_run)), Limits(), lambda size: None)
    asked = [
        Over(("one", f"thing {row}"), (), unsure=unsure)
        for row in range(REMEMBERED + 1)
        for unsure in (0.4, 0.5)
    ]
    found = model.encode(asked)
    assert [model.known(over) for over in asked] == [None, None, *found[2:]]
    assert len({id(one.predictor) for one in found}) == REMEMBERED + 1
    assert model.encode(asked[-1:] * 2) == found[-1:] * 2, "one, so that their images are scored together"
    model.close()
