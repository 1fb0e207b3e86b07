"""Hints: what people type in place of what would be right, and that they are told."""

import pytest
from standins import fill_folder

from wordsight.arguments import options_first
from wordsight.cli import VERBS, main


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A folder with photos, a table, a picture and something that looks like a run."""
    monkeypatch.chdir(tmp_path)
    fill_folder(tmp_path / "photos", ("red", "blue"), 1)
    (tmp_path / "table.csv").write_text("path,label\n")
    (tmp_path / "a.png").write_bytes(b"x")
    (tmp_path / "words.json").write_text("{}")
    (tmp_path / "runs" / "one").mkdir(parents=True)
    (tmp_path / "runs" / "one" / "config.yaml").write_text("format: 1\n")
    (tmp_path / "runs" / "one" / "finished.json").write_text("{}")
    return tmp_path


@pytest.mark.parametrize(
    ("words", "says"),
    [
        # settings behind dashes
        ("fit --data photos/", "key=value, without dashes: data=photos/"),
        ("fit --data=photos/ --shots 4", "without dashes: data=photos/"),
        ("fit data=photos/ --shots 4", "without dashes: shots=4"),
        ("fit data=photos/ -shots 4", "without dashes: shots=4"),
        ("fit --shot 4", "without dashes: shots=4"),
        ("fit --settings.width 4", "without dashes: settings.width=4"),
        ("fit data=photos/ --flip", "without dashes: flip=..."),
        ("fit data=photos/ --no-flip", "without dashes: flip=false"),
        ("fit --train-epochs 3", "--train-epochs is no option of fit"),
        ("eval runs/one --data photos/", "without dashes: data=photos/"),
        ("suite few-shot --methods aape,coop", "without dashes: methods=aape,coop"),
        ("join --vision dino", "without dashes: vision=dino"),
        ("sentences --classes a,b", "without dashes: classes=a,b"),
        ("sentences --per-question 3", "without dashes: per_question=3"),
        # options of the verb at hand
        ("predict runs/one a.png --shots 4", "shots=4 is a setting of `wordsight fit`. predict takes --add"),
        ("predict runs/one a.png --tip 4", "--tip is no option of predict (did you mean '--top'?)"),
        ("predict runs/one --data photos/", "wordsight predict RUN photos/"),
        ("predict runs/one data=photos/", "wordsight predict RUN photos/"),
        ("report runs/one --latx t.tex", "(did you mean '--latex'?)"),
        ("verify runs/one --seed 1", "seed=1 is a setting of `wordsight fit`. verify takes"),
        # words in a place where others are expected
        ("fit photos/", "'photos/' is data; give it as data=photos/"),
        ("fit table.csv", "give it as data=table.csv"),
        ("fit data photos/", "without blanks: data=photos/"),
        ("fit data = photos/", "without blanks: data=photos/"),
        ("fit data= photos/", "without blanks: data=photos/"),
        ("fit data =photos/", "without blanks: data=photos/"),
        ("fit data=photos/ method aape", "without blanks: method=aape"),
        ("fit data=photos/ words.json", "sentences are sentences=words.json"),
        ("fit runs/one", "is a run and no setting of fit: `wordsight eval runs/one` gives its figures"),
        ("suite few-shot photos/", "give it as data=photos/"),
        ("eval photos/", "`wordsight fit data=photos/` makes a run, and `wordsight eval RUN data=photos/`"),
        ("eval runs/one photos/", "give it as data=photos/"),
        ("eval data=photos/", "the run comes first: `wordsight eval RUN data=photos/`"),
        ("eval runs", "'runs' holds runs and is none itself; give one of runs/one"),
        ("eval runs/on", "'runs/on' does not exist (did you mean 'one'?)"),
        ("eval runs/one/config.yaml", "is a file and no run folder; its run is runs/one"),
        ("predict runs/one photo/", "'photo/' does not exist (did you mean 'photos'?)"),
        ("search photos --image tabel.csv", "'tabel.csv' does not exist (did you mean 'table.csv'?)"),
        ("fit data=photos/ backbone=./photo", "'./photo' does not exist (did you mean 'photos'?)"),
        ("predict photos/ a.png", "`wordsight predict RUN photos/` takes that and these images"),
        ("predict runs/one a.png ", "a word behind a.png is blank"),  # as an unset variable in quotes
        ("report ", "a word behind report is blank (a variable that is not set?)"),
        ("report runs/one --csv ", "--csv has no value (a variable that is not set?)"),
        ("report runs/one --latex=", "--latex= has no value"),
        ("label ", "a word behind label is blank"),
        ("suite few-shot data=", "'data=' has no value (a variable that is not set?)"),
        ("suite few-shot data=photos/,", "data='photos/,' names nothing at one place"),
        ("fit data=", "'data=' has no value"),
        ("fit data=photos/ unlabelled=", "'unlabelled=' has no value"),  # not a run without a pool
        ("fit data=photos/ out=~nobody-of-that-name/r", "a home folder that this machine does not know"),
        (f"fit data={'x' * 300}", "cannot be used: File name too long"),
        (f"predict runs/one {'x' * 300}", "cannot be used: File name too long"),
        ("predict a.png photos/", "the run comes first: `wordsight predict RUN a.png`"),
        ("report photos/", "'photos/' holds no run, at no depth: `wordsight fit data=photos/` makes one"),
        # mistyped keys of each verb's own settings
        ("fit data=photos/ seeds=1", "unknown setting 'seeds' (did you mean 'seed'?)"),
        ("suite few-shot seed=1", "unknown setting 'seed' (did you mean 'seeds'?)"),
        ("eval runs/one dat=x", "unknown setting 'dat' (did you mean 'data'?)"),
        ("show joins", "(did you mean 'join'?)"),
    ],
)
def test_a_mistake_is_answered_with_what_would_be_right(place, capsys, words, says):
    try:
        code = main(words.split(" "))
    except SystemExit as stop:
        code = stop.code
    out, err = capsys.readouterr()
    assert code == 2 and out == "" and says in err and "Traceback" not in err, err


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ("train data=photos/", "did you mean 'fit'?"),
        ("evaluate runs/one", "did you mean 'eval'?"),
        ("photos/", "`wordsight fit data=photos/`"),
        ("data=photos/", "`wordsight fit data=photos/`"),
        ("predict a.png", "the run comes first: `wordsight predict runs/photos new.jpg`"),
        ("show", "NAME is a method of `wordsight list`, run, train"),
        ("generate runs/one", "as in `wordsight generate"),
    ],
)
def test_a_missing_or_strange_verb_or_word(place, capsys, words, says):
    with pytest.raises(SystemExit, match="2"):
        main(words.split())
    assert says in capsys.readouterr().err


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_takes_json_and_explains_itself(verb, capsys):
    with pytest.raises(SystemExit, match="0"):
        main([verb, "--help"])
    out = capsys.readouterr().out
    assert "--json" in out
    for key in {"fit": ["shots=16", "labelled images"], "join": ["pooling=auto"]}.get(verb, []):
        assert key in out


def test_options_may_stand_between_words():
    verb = VERBS["predict"]
    for typed, ordered in (
        ("RUN a.jpg --top 3 b.jpg", "--top 3 RUN a.jpg b.jpg"),
        ("RUN --explain a.jpg --to 3 --json", "--explain --to 3 --json RUN a.jpg"),
        ("RUN a.jpg --unsure=0.5 b.jpg", "--unsure=0.5 RUN a.jpg b.jpg"),
        ("RUN --csv -1.csv -- --top", "--csv -1.csv RUN -- --top"),
        ("RUN a.jpg --top", "--top RUN a.jpg"),
    ):
        assert options_first(typed.split(), verb) == ordered.split(), typed


def test_equal_words_are_not_blank(place, capsys):
    """Python keeps one object for each text of one letter."""
    assert main(["report", "a", "a"]) == 2 and "blank" not in capsys.readouterr().err
