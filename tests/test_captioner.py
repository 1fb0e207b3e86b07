"""Captions of a finished run: batches, beams, drawn tokens, the verb, and what is measured of them."""

import io
import json

import pytest
import torch
from standins import COLOURS, captioned, paint, replaced

from wordsight import load, predict
from wordsight.backbones.generator import Writing
from wordsight.captioner import Captions, caption
from wordsight.cli import main
from wordsight.config import RunSettings, WordsightError
from wordsight.data import Pairs
from wordsight.data.pairs import open_pairs
from wordsight.export import export
from wordsight.files import csv_rows
from wordsight.fit import fit
from wordsight.fitted import open_generator
from wordsight.reader import read
from wordsight.report import report
from wordsight.report.captions import EXAMPLES
from wordsight.tasks import evaluate
from wordsight.tasks.caption import constant_caption, figures, nearest_captions, typical_captions
from wordsight.text_metrics import bleu, cider_d, tokens


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    """Fifteen images with two captions each, of which five are for testing."""
    return captioned(tmp_path_factory.mktemp("captions"), ("{name} paint", "a wall in {name}"))


@pytest.fixture(scope="module")
def run(table, tiny_clip, own_lm, tmp_path_factory):
    out = str(tmp_path_factory.mktemp("run") / "run")
    given = {"data": str(table), "backbone": str(tiny_clip), "method": "limber", "out": out, "device": "cpu"}
    own = {"text": str(own_lm), "tokens": 3, "h": "image", "max_tokens": 24}
    loop = {"max_steps": 60, "batch_size": 10, "warmup_steps": 1, "lr": 3e-2}
    return fit(read(RunSettings, given, {"settings": own, "train": loop}))


@pytest.fixture(scope="module")
def generator(run):
    return open_generator(run.folder)


def paths(table):
    return sorted(map(str, table.glob("*.png")))


def said(generator, images, how=None, **more):
    return [one.text for one in Captions(generator, images, how, **more)]


@pytest.mark.slow
def test_a_caption_does_not_depend_on_its_batch(generator, table):
    images = paths(table)[:6]
    together = said(generator, images)
    assert len(together) == 6 and together == said(generator, images, batch=1)
    assert said(generator, images[::-1], batch=4) == together[::-1]


@pytest.mark.slow
def test_drawn_captions_depend_on_the_seed_and_the_image_alone(generator, table):
    images, how = paths(table), Writing(max_new_tokens=12, temperature=1.5)
    first = said(generator, images, how)
    assert said(generator, images[::-1], how, batch=1) == first[::-1]
    assert said(generator, images, how, seed=2) != first
    surest = Writing(max_new_tokens=12, temperature=1.5, top_p=1e-6)
    assert said(generator, images, surest) == said(generator, images, Writing(max_new_tokens=12))


@pytest.mark.slow
def test_beams_find_what_is_at_least_as_likely(generator, table):
    images = paths(table)[:4]
    lm = generator.method.lm
    seen = generator.see([paint(colour, 7) for colour in list(COLOURS.values())[:4]])

    def likelihood(beams):
        settings = {"max_new_tokens": 6, "min_new_tokens": 6, "num_beams": beams}
        total = 0.0
        for one in seen:
            (tokens_,) = lm.write([lm.row([one])], **settings)
            total -= float(lm.loss(one[None], torch.tensor([tokens_]), torch.tensor([6])))
        return total

    assert likelihood(8) >= likelihood(1) - 1e-5
    assert said(generator, images, Writing(beams=3)) == said(generator, images, Writing(beams=3), batch=1)


def test_what_was_seen_now_is_what_the_cache_has(generator, table):
    """But for the cache's float16, which `see` has too."""
    from PIL import Image

    images = paths(table)[:3]
    seen = generator.see([Image.open(path).convert("RGB") for path in images])
    texts = [" ".join(text.split()) for text in generator.write([[one] for one in seen], Writing())]
    assert texts == said(generator, images)


def test_a_run_learns_to_caption(run, generator, table):
    losses = [event["caption"] for event in run.events("train")]
    assert losses[-1] < losses[0] - 0.2  # of an LM of random numbers, that is much
    (event,) = run.events("captions")
    assert event["images"] == 5 and event["scorer"] and 0 <= event["ref_clip_score"] <= 1.5
    rows = csv_rows((run.folder / f"captions-{table.name}.csv").read_text())
    assert [row["caption"] for row in rows] == said(generator, open_pairs(str(table), "test").pictures)


@pytest.mark.slow
def test_the_verb(run, table, tmp_path, capsys):
    (tmp_path / "broken.png").write_bytes(b"no image")
    images = [*paths(table)[:2], str(tmp_path / "broken.png")]
    code = main(["caption", str(run.folder), *images, "--csv", str(tmp_path / "out.csv"), "--json"])
    answer = json.loads(capsys.readouterr().out)
    assert code == 2 and [entry["image"] for entry in answer["captions"]] == images[:2]
    assert answer["skipped"][0]["image"] == images[2]
    assert (answer["account"]["seen"], answer["account"]["kept"]) == (3, 2)
    rows = csv_rows((tmp_path / "out.csv").read_text())
    assert [row["caption"] for row in rows] == [entry["caption"] for entry in answer["captions"]]
    assert (
        main(["caption", str(run.folder), images[0], "--sample", "--temperature", "0.7", "--top-p", "0.9"])
        == 0
    )
    assert main(["eval", str(run.folder), f"data={table}"]) == 0
    assert "CIDEr-D" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("more", "says"),
    [
        (["--temperature", "0.5"], "give --sample too"),
        (["--sample", "--beam", "2"], "give one of the two"),
        (["--sample", "--top-p", "0"], "top_p=0.0"),
        (["--batch", "0"], "batch=0"),
        (["--max-new-tokens", "500"], "do not fit into the 96 positions"),
    ],
)
def test_what_cannot_be_is_told(run, table, capsys, more, says):
    assert main(["caption", str(run.folder), paths(table)[0], *more]) == 2
    assert says in capsys.readouterr().err


def test_other_runs_and_verbs_say_what_to_do(run, backbone, photos, tmp_path, table):
    other = fit(data=str(photos), backbone=backbone, method="zero_shot", shots=2, out=str(tmp_path / "run"))
    with pytest.raises(WordsightError, match="says nothing about images"):
        caption(other.folder, paths(table))
    for asked in (run.method, lambda: load(run.folder), lambda: predict(run.folder, paths(table))):
        with pytest.raises(WordsightError, match=r"scores no classes; .* `wordsight caption"):
            asked()
    with pytest.raises(WordsightError, match="is about classes"):
        evaluate(run, classes="base")
    with pytest.raises(WordsightError, match="writes none"):
        evaluate(other, scorer="micro")


@pytest.mark.slow
def test_an_export_needs_nothing_outside_it(run, generator, table, tmp_path):
    out = export(run.folder, tmp_path / "out")
    images = paths(table)[:4]
    assert [one.text for one in caption(out, images)] == said(generator, images)
    card = (out / "README.md").read_text()
    assert "wordsight caption out" in card and "CIDEr-D" in card and "language model" in card
    assert str(table.parent) not in (out / "config.yaml").read_text() + card


@pytest.mark.slow
def test_a_report_shows_captions(run, tmp_path):
    answer = report([run.folder], tmp_path / "report.html")
    page = (tmp_path / "report.html").read_text()
    assert "CIDEr-D" in answer["markdown"] and "RefCLIPScore" in page
    written = csv_rows(next(run.folder.glob("captions-*.csv")).read_text())
    assert page.count("Best captions: limber on") == page.count("Worst captions: limber on") == 1
    count = 2 * min(EXAMPLES, len(written) // 2)
    assert page.count("<dt>people") == page.count("data:image/") == count and " paint" in page
    assert sum(f">{one['image']}<" in page for one in written) == count


def test_a_replaced_lm_is_noticed(run, own_lm, table):
    with replaced(own_lm), pytest.raises(WordsightError, match="has been replaced since"):
        caption(run.folder, paths(table))


@pytest.mark.slow
def test_an_lm_that_has_moved_is_named(run, own_lm, table, tmp_path, generator):
    moved = own_lm.rename(tmp_path / "elsewhere")
    try:
        with pytest.raises(WordsightError, match="does not exist"):
            caption(run.folder, paths(table))
        images = paths(table)[:2]
        assert [one.text for one in caption(run.folder, images, lm=str(moved))] == said(generator, images)
        assert main(["eval", str(run.folder), f"lm={moved}"]) == 0
    finally:
        moved.rename(own_lm)


def test_figures_are_the_metrics_means():
    captions, references = (
        ["a dog runs", "two cats"],
        [["a dog runs fast", "a dog"], ["two cats sit", "cats"]],
    )
    result, columns = figures(captions, references)
    cut, people = list(map(tokens, captions)), [list(map(tokens, texts)) for texts in references]
    assert columns["cider_d"] == cider_d(cut, people) and result["bleu_4"] == bleu(cut, people)[-1]
    assert result["cider_d"] == sum(columns["cider_d"]) / 2 and "clip_score" not in result


def test_what_needs_no_run():
    captions = [
        ("zebra crossing", "a dog runs on grass", "a dog runs on green grass"),
        ("a cat sleeps", "a cat sleeps on a bed", "tea"),
    ]
    chosen = typical_captions(captions)
    assert chosen[0].startswith("a dog runs") and chosen[1].startswith("a cat sleeps")
    train = Pairs("pairs", [], captions)
    images = torch.eye(3)[:2]
    assert nearest_captions(train, images, images[[1, 0, 1]]) == [chosen[1], chosen[0], chosen[1]]
    assert constant_caption([*captions, *[("a dog runs", "a dog runs")] * 3]) == "a dog runs"
    assert typical_captions([("alone",)]) == ["alone"]


# -- questions --


@pytest.mark.slow
def test_ask_answers_and_tells_what_is_missing(run, table, capsys):
    image, question = f"{table}/red0.png", "what paint is it?"
    assert main(["ask", str(run.folder), image, question, "--json"]) == 0
    (answer,) = json.loads(capsys.readouterr().out)["answers"]
    assert answer["image"] == image and answer["written"].startswith(answer["answer"].split(" ")[0])
    assert main(["ask", str(run.folder), image, question]) == 0
    assert capsys.readouterr().out == f"{image}  {answer['answer']}\n"
    for words, says in (
        ([image], "the question is missing"),
        ([question], "'what paint is it?' is a question without an image to look at"),
        ([f"{table}/gone.png", question], "gone.png' does not exist"),
        ([image, "what", "is it?"], "put it in quotes"),
        ([image, "  "], "the question is blank"),
        ([image, question, "--shots", "1"], "of which data"),
    ):
        assert main(["ask", str(run.folder), *words]) == 2 and says in capsys.readouterr().err


@pytest.mark.slow
def test_eval_measures_answers_about_images_that_the_run_has_not_seen(run, table, tmp_path, capsys):
    parts = ((0, "train"), (1, "test"), (2, "test"))
    lines = [f"{table}/{name}{n}.png,is it {name}?,yes,{part}" for name in COLOURS for n, part in parts]
    (tmp_path / "q.csv").write_text("\n".join(["path,question,answer,split", *lines]))
    words = ["eval", str(run.folder), f"data={tmp_path}/q.csv", "shots=2", "--json"]
    assert main(words) == 0
    answer = capsys.readouterr()
    (event,) = json.loads(answer.out)
    assert (event["questions"], event["shots"], event["part"], event["constant"]) == (5, 2, "test", 100.0)
    assert {"accuracy", "blind", "over_blind", "whole"} <= event.keys()
    assert "left out 5 of 10 questions about images that" in answer.err
    assert len(csv_rows((run.folder / "answers-q-csv-2shot-seed1.csv").read_text())) == 5
    assert run.events("answers")[-1]["accuracy"] == event["accuracy"]
    assert main(words[:-1]) == 0 and "VQA accuracy" in capsys.readouterr().out
    assert main([*words[:3], "classes=new"]) == 2 and "classes=new is about" in capsys.readouterr().err
    assert main([*words[:2], "shots=2"]) == 2 and "what is measured has none" in capsys.readouterr().err


def test_a_table_that_was_not_written_is_told(run, table, tmp_path, monkeypatch):
    def closed(*_):
        raise BrokenPipeError

    monkeypatch.setattr("wordsight.cli._answered", closed)
    monkeypatch.setattr("sys.stdout", io.StringIO())
    assert main(["caption", str(run.folder), str(table), "--csv", str(tmp_path / "o.csv")]) == 2


def test_a_search_by_a_limber_run_takes_its_backbone(run, table):
    from wordsight.search import search

    assert len(search(table, "red", 2, backbone=str(run.folder))) == 2
