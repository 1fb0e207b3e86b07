"""The command line as a user meets it: the whole way through, and one sentence for every mistake."""

import errno
import json
import os
import resource
import signal
import struct
import subprocess
import sys
import time
import zlib
from pathlib import Path

import pytest
import torch
import yaml
from standins import COLOURS, command, fill_folder, mostly_slow, paint

from wordsight import train as loop
from wordsight.cli import main
from wordsight.config import METHODS

QUICK = ("train.epochs=2", "train.min_steps=10")


@pytest.fixture
def run_cli(capsys):
    """Run a verb in this process: exit code, stdout, stderr."""

    def run(*words):
        capsys.readouterr()
        try:
            code = main([str(word) for word in words])
        except SystemExit as stop:  # argparse's own
            code = stop.code
        shown = capsys.readouterr()
        return code, shown.out, shown.err

    return run


@pytest.fixture
def refused(run_cli):
    """Run a verb that must end with code 2 and one sentence; returns it."""

    def run(*words):
        code, out, err = run_cli(*words)
        assert code == 2 and "Traceback" not in err and "Traceback" not in out, err
        said = [line for line in err.splitlines() if line.startswith("wordsight")]
        assert len(said) == 1 and len(said[0]) > 20, err
        return said[0]

    return run


@pytest.fixture(scope="module")
def fitted(photos, tiny_clip, tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "aape"
    assert (
        main(
            [
                "fit",
                f"data={photos}",
                f"backbone={tiny_clip}",
                "shots=2",
                "device=cpu",
                f"out={folder}",
                *QUICK,
            ]
        )
        == 0
    )
    return folder


@pytest.fixture
def copied(fitted, tmp_path):
    """A finished run to damage."""
    import shutil

    return Path(shutil.copytree(fitted, tmp_path / "copy"))


# -- the whole way -------------------------------------------------------------------------------------------


def test_from_a_folder_of_images_to_predictions(photos, tiny_clip, tmp_path, run_cli):
    words = (
        "fit",
        f"data={photos}",
        f"backbone={tiny_clip}",
        "shots=2",
        "device=cpu",
        f"out={tmp_path / 'run'}",
        *QUICK,
    )
    code, out, err = run_cli(*words)
    assert (
        code == 0
        and "fitted aape on 6 images of 3 classes in" in out
        and "accuracy" in out
        and f"run folder: {tmp_path / 'run'}" in out
    )
    assert "template set 'clip7' stands in" in err
    code, out, err = run_cli(*words)
    assert code == 0 and "is finished already" in err and "accuracy" in out

    code, out, _ = run_cli("eval", tmp_path / "run", "--json")
    (event,) = json.loads(out)
    assert code == 0 and event["images"] == 12 and "confusion" not in event
    code, out, _ = run_cli("eval", tmp_path / "run", f"data={photos}/", "classes=base")
    assert code == 0 and " base: accuracy" in out and "(8 test images, chance 50.0%)" in out, (
        "of the run's own data only what it has not seen"
    )

    code, out, _ = run_cli(
        "predict",
        tmp_path / "run",
        photos / "red" / "0.png",
        photos / "blue" / "1.png",
        "--top",
        "2",
        "--explain",
        "--json",
    )
    first, second = json.loads(out)["predictions"]
    assert (
        code == 0
        and first["image"] == str(photos / "red" / "0.png")
        and second["image"] == str(photos / "blue" / "1.png")
    )
    assert (
        len(first["classes"]) == 2
        and len(first["sentences"]) == 3
        and first["classes"][0]["probability"] >= first["classes"][1]["probability"]
    )
    assert set(first["sentences"][0]) == {"class", "sentence", "cosine"}
    assert set(first["decisive"]) == {"class", "runner_up", "sentence", "raised", "without"}
    assert first["decisive"]["class"] == first["classes"][0]["class"]
    assert first["decisive"]["runner_up"] == first["classes"][1]["class"]

    (tmp_path / "s.json").write_text(json.dumps({"violet": ["a violet flower"]}))
    image = photos / "red" / "0.png"
    code, out, _ = run_cli(
        "predict",
        tmp_path / "run",
        image,
        "--classes",
        "red, violet",
        "--sentences",
        tmp_path / "s.json",
        "--top",
        "5",
        "--json",
    )
    assert code == 0 and {entry["class"] for entry in json.loads(out)["predictions"][0]["classes"]} == {
        "red",
        "violet",
    }
    code, out, _ = run_cli("predict", tmp_path / "run", image, "--explain")
    assert (
        code == 0 and out.startswith(f"{image}  ") and len(out.splitlines()) == 7
    )  # the image, a heading, three sentences, and in two lines the decisive one
    assert " most: " in out and "    without it: " in out


def test_yaml_and_words_together(photos, tiny_clip, tmp_path, run_cli):
    settings = {
        "data": str(photos),
        "backbone": str(tiny_clip),
        "method": "zero_shot",
        "shots": 3,
        "device": "cpu",
        "out": str(tmp_path / "run"),
    }
    (tmp_path / "s.yaml").write_text(yaml.safe_dump(settings))
    code, out, _ = run_cli("fit", tmp_path / "s.yaml", "shots=1", "--json")
    assert code == 0 and json.loads(out)["eval"][0]["images"] == 15


def test_base_and_new_end_in_their_harmonic_mean(tiny_clip, tmp_path, run_cli):
    data = fill_folder(tmp_path / "four", ("red", "green", "blue", "yellow"), 3)
    code, out, _ = run_cli(
        "fit",
        f"data={data}",
        f"backbone={tiny_clip}",
        "method=zero_shot",
        "shots=1",
        "classes=base",
        f"out={tmp_path / 'run'}",
        "device=cpu",
    )
    assert code == 0 and " base: " in out and "  new: " in out and "    H: " in out


@pytest.mark.slow
def test_list_and_show(run_cli):
    code, out, _ = run_cli("list", "--json")
    assert code == 0 and json.loads(out)["methods"].keys() == METHODS.keys()
    code, out, _ = run_cli("list")
    assert code == 0 and all(name in out for name in METHODS)
    for name in METHODS:
        code, out, _ = run_cli("show", name, "--json")
        about = json.loads(out)
        assert code == 0 and about["name"] == name and about["about"]
        code, out, _ = run_cli("show", name)
        assert code == 0 and all(setting in out for setting in about["settings"])


def test_no_verb_prints_help_and_a_mistyped_one_its_nearest(run_cli):
    code, out, _ = run_cli()
    assert code == 0 and "fit" in out and "predict" in out
    code, _, err = run_cli("pedict", "x", "y")
    assert code == 2 and "did you mean 'predict'" in err


# -- the LM inside a two_tower run ---------------------------------------------------------------------------


@pytest.fixture(scope="module")
def two_tower(photos, tiny_clip, lm, tmp_path_factory):
    """A CLAMP over a random LM of letters."""
    folder = tmp_path_factory.mktemp("runs") / "clamp"
    own = (
        f"settings.text={lm}",
        "settings.wrapper=a {}.",
        "settings.prompts=3",
        "settings.rank=2",
        "settings.heads=2",
        "template={}",
    )
    words = (
        f"data={photos}",
        f"backbone={tiny_clip}",
        "method=two_tower",
        "device=cpu",
        f"out={folder}",
        *own,
        *QUICK,
        "train.lr=0.01",
    )
    assert main(["fit", *words]) == 0
    return folder


@pytest.mark.slow
def test_generate_with_adapters_on_off_and_both(two_tower, run_cli, refused, fitted, tmp_path):
    words = ("generate", two_tower, "a dog", "--max-new-tokens", "8")
    code, off, _ = run_cli(*words)
    code_on, on, _ = run_cli(*words, "--adapters", "on")
    assert code == code_on == 0
    code, both, _ = run_cli(*words, "--adapters", "both")
    assert code == 0 and both == f"adapters off: {off}adapters on: {on}"
    code, out, _ = run_cli(*words, "--temperature", "1", "--seed", "3", "--json")
    shown = json.loads(out)
    assert (
        code == 0
        and shown["written"].keys() == {"off"}
        and shown["seed"] == 3
        and run_cli(*words, "--temperature", "1", "--seed", "3", "--json")[1] == out
    )
    assert "invalid choice: 'maybe'" in refused(*words, "--adapters", "maybe")
    assert "is a run of aape, a classifier" in refused("generate", fitted, "a dog")
    assert "is a CLIP, which has no language model" in refused("generate", "micro", "a dog")
    assert "does not exist" in refused("generate", tmp_path / "nothing", "a dog")


@pytest.mark.slow
def test_verify_names_every_promise_and_a_broken_one_is_exit_code_one(
    two_tower, run_cli, refused, fitted, monkeypatch
):
    code, out, _ = run_cli("verify", two_tower)
    *lines, last = out.splitlines()
    assert (
        code == 0
        and last == f"all {len(lines)} hold"
        and len(lines) == 10
        and all(line.startswith("passed  ") for line in lines)
    )
    assert any("read_only" in line and "prompts change no state of the text" in line for line in lines)
    code, out, _ = run_cli("verify", two_tower, "--json")
    assert code == 0 and json.loads(out)["passed"] and json.loads(out)["checks"]["padding"]["value"] == 0
    assert "is a run of aape, a classifier" in refused("verify", fitted)

    from wordsight.backbones import verify as verifier

    real = verifier.readonly.one_pass
    monkeypatch.setattr(
        verifier.readonly,
        "one_pass",
        lambda trunk, embedded, prompts, *rest, **more: [
            part + prompts.sum() for part in real(trunk, embedded, prompts, *rest, **more)
        ],
    )
    code, out, _ = run_cli("verify", two_tower)
    assert (
        code == 1
        and "FAILED  read_only" in out
        and " of 10 FAILED: " in out.splitlines()[-1]
        and "read_only" in out.splitlines()[-1]
    )
    code, out, _ = run_cli("verify", two_tower, "--json")
    assert code == 1 and not json.loads(out)["passed"]


@pytest.mark.slow
def test_the_lm_of_a_run_writes_sentences(two_tower, tmp_path, run_cli):
    asks = (
        "temperature=0",
        "per_question=1",
        "max_tokens=4",
        "questions=satellite",
        f"out={tmp_path / 's.json'}",
    )
    code, out, _ = run_cli("sentences", "classes=red,green", f"model={two_tower}", "local=true", *asks)
    assert (
        code == 0
        and "sentences for 2 classes" in out
        and json.loads((tmp_path / "s.json").read_text())["model"] == str(two_tower)
    )


# -- mistakes ------------------------------------------------------------------------------------------------


@pytest.fixture
def fit_words(photos, tiny_clip, tmp_path):
    def words(**changes):
        base = {
            "data": photos,
            "backbone": tiny_clip,
            "method": "linear_probe",
            "shots": 2,
            "device": "cpu",
            "out": tmp_path / "run",
        }
        return ["fit", *(f"{key}={value}" for key, value in (base | changes).items())]

    return words


def test_settings_that_are_not_known(refused, fit_words):
    assert "unknown setting 'shot' (did you mean 'shots'?)" in refused(*fit_words(), "shot=3")
    assert "method 'linear_prob' is not known (did you mean 'linear_probe'?)" in refused(
        *fit_words(method="linear_prob")
    )
    assert "unknown setting 'settings.strenght' (did you mean 'strength'?)" in refused(
        *fit_words(), "settings.strenght=3"
    )
    assert "unknown setting 'train.epoch' (did you mean 'epochs'?)" in refused(
        *fit_words(method="aape"), "train.epoch=3"
    )
    assert "shots='many' is not a whole number" in refused(*fit_words(shots="many"))
    assert "classes='bas' is not a choice (did you mean 'base'?)" in refused(*fit_words(classes="bas"))
    assert "setting 'data' is missing" in refused("fit")
    assert "'photos' is neither key=value, nor a YAML file" in refused("fit", "photos")
    assert "settings file 'none.yaml' does not exist" in refused("fit", "none.yaml")
    assert "method 'app' is not known" in refused("show", "app")
    assert "device='tpu:0:0' is not known" in refused(*fit_words(device="tpu:0:0"))
    assert "sentences='clip' is neither a file nor a named set" in refused(*fit_words(sentences="clip"))


def test_data_that_cannot_be_learned_from(refused, fit_words, tmp_path):
    assert "does not exist" in refused(*fit_words(data=tmp_path / "none"))
    (tmp_path / "empty").mkdir()
    assert "is empty; expected class folders with images" in refused(*fit_words(data=tmp_path / "empty"))
    assert "has one class only (red)" in refused(*fit_words(data=fill_folder(tmp_path / "one", ("red",))))
    few = fill_folder(tmp_path / "few", ("red", "blue"), 3)
    paint(COLOURS["red"], 9).save(few / "red" / "9.png")
    assert "2 of 2 classes have fewer: blue 3, red 4; give shots=3 or fewer" in refused(
        *fit_words(data=few, shots=16)
    )
    twice = fill_folder(tmp_path / "twice", ("red", "blue"))
    (twice / "blue").rename(twice / "Red")
    assert "names a class twice" in refused(*fit_words(data=twice))
    (tmp_path / "text" / "a").mkdir(parents=True)
    (tmp_path / "text" / "a" / "x.txt").write_text("x")
    assert "holds no images" in refused(*fit_words(data=tmp_path / "text"))
    (tmp_path / "s.json").write_bytes(b"")
    assert "is empty (0 bytes)" in refused(*fit_words(sentences=tmp_path / "s.json"))
    (tmp_path / "s.txt").write_bytes(b"")
    assert "is empty (0 bytes)" in refused(*fit_words(sentences=tmp_path / "s.txt"))
    assert "neither config.json" in refused(*fit_words(backbone=tmp_path / "empty"))


def png_header(width, height):
    """A PNG that claims a size and holds one byte of it."""

    def chunk(kind, body):
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(b"\0"))
        + chunk(b"IEND", b"")
    )


def test_images_that_cannot_be_read_are_skipped_counted_and_listed(run_cli, fit_words, tmp_path):
    data = fill_folder(tmp_path / "photos", count=5)
    whole = (data / "red" / "0.png").read_bytes()
    broken = {
        "huge": png_header(20_000, 20_000),
        "half": whole[: len(whole) // 2],
        "nothing": b"",
        "words": b"I am no image",
    }
    for name, content in broken.items():
        (data / "red" / f"{name}.png").write_bytes(content)
    paint(COLOURS["red"], 1, size=1).save(data / "red" / "dot.png")
    (data / "red" / "notes.txt").write_text("x")
    code, out, err = run_cli(*fit_words(data=data, shots=5, seed=2), "--json")
    assert code == 0, err
    result = json.loads(out)
    skipped = dict(result["fit"][0]["skipped"] + result["eval"][0]["skipped"])
    assert skipped.keys() == {f"red/{name}.png" for name in broken}
    assert "too large: 20000 x 20000" in skipped["red/huge.png"] or "exceeds limit" in skipped["red/huge.png"]
    assert result["fit"][0]["images"] + result["eval"][0]["images"] == 15 + 1
    assert (
        "skipped" in err
        and all(f"red/{name}.png" in err for name in broken)
        and "left out 1 of 21 files of no image format: red/notes.txt" in err
    )


def test_what_predict_cannot_do(refused, run_cli, fitted, photos, tmp_path):
    image = photos / "red" / "0.png"
    (tmp_path / "bad.png").write_bytes(b"x")
    code, out, err = run_cli("predict", fitted, tmp_path / "bad.png", image, tmp_path / "none.png")
    assert (
        code == 2
        and out.startswith(f"{image}  ")
        and "2 of what was given could not be done" in err
        and f"skipped {tmp_path / 'bad.png'}: " in err
        and f"skipped {tmp_path / 'none.png'}: " in err
    )
    assert "none of 1 images could be read" in refused("predict", fitted, tmp_path / "bad.png")
    assert "--top 0 names no class" in refused("predict", fitted, image, "--top", "0")
    assert "--sentences describes the classes of --classes" in refused(
        "predict", fitted, image, "--sentences", "s.json"
    )
    assert "give at least 2 class names, each once" in refused("predict", fitted, image, "--classes", "red")
    assert "names a class twice" in refused("predict", fitted, image, "--classes", "red,Red")
    assert "is no run folder" in refused("predict", tmp_path, image)
    assert "unknown setting 'class' (did you mean 'classes'?)" in refused("eval", fitted, "class=all")
    assert "classes='bas' is not a choice" in refused("eval", fitted, "classes=bas")
    assert "does not exist" in refused("eval", fitted, "data=none-here")


def test_a_run_without_a_backbone_is_for_python(refused, photos, tmp_path):
    from wordsight import Classifier

    folder = Classifier(None, "linear_probe").fit(torch.eye(4).numpy(), list("aabb")).save(tmp_path / "run")
    assert "without a backbone" in refused("predict", folder, photos / "red" / "0.png")
    assert "with a backbone" in refused("eval", folder, f"data={photos}")


def test_a_damaged_run(refused, copied, photos):
    image, weights = photos / "red" / "0.png", copied / "weights.safetensors"
    whole = weights.read_bytes()
    for damaged in (whole[:50], whole[:-1] + bytes([whole[-1] ^ 1])):
        weights.write_bytes(damaged)
        assert "weights.safetensors is damaged" in refused("predict", copied, image)
        assert "weights.safetensors is damaged" in refused("eval", copied)
    weights.unlink()
    assert "weights.safetensors is missing" in refused("predict", copied, image)
    config = copied / "config.yaml"
    config.write_text("format: [")
    assert "not readable as YAML" in refused("predict", copied, image)


def test_a_run_of_other_settings_is_not_overwritten(refused, fitted, photos, tiny_clip):
    words = [
        "fit",
        f"data={photos}",
        f"backbone={tiny_clip}",
        "shots=2",
        "device=cpu",
        f"out={fitted}",
        *QUICK,
    ]
    before = (fitted / "weights.safetensors").read_bytes()
    assert "holds another run: seed is 1 there and 5 here. Give another out=..." in refused(*words, "seed=5")
    assert (fitted / "weights.safetensors").read_bytes() == before


def test_a_full_disk_is_said_and_the_same_command_goes_on(refused, run_cli, fit_words, tmp_path, monkeypatch):
    original = os.replace

    def replace(source, target):
        if str(target).endswith("weights.safetensors"):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return original(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", replace)
        assert "cannot be written: No space left on device" in refused(*fit_words())
    assert not list((tmp_path / "run").glob("*.part"))
    code, out, _ = run_cli(*fit_words())
    assert code == 0 and "accuracy" in out


# -- interruption and speed: processes of their own ----------------------------------------------------------


def environment(**more):
    return {**os.environ, "HF_HUB_OFFLINE": "1", **more}


@pytest.mark.slow
def test_ctrl_c_and_the_same_command_end_in_the_same_bits(photos, tiny_clip, tmp_path, run_cli):
    words = [
        "fit",
        f"data={photos}",
        f"backbone={tiny_clip}",
        "shots=2",
        "device=cpu",
        "settings.form=skip",
        "train.min_steps=300",
        "train.epochs=1",
        "train.save_seconds=0.02",
    ]
    process = command([*words, f"out={tmp_path / 'a'}"], tmp_path / "errors")
    try:
        state, limit = tmp_path / "a" / "state" / loop.STATE_FILE, time.monotonic() + 60
        while not state.exists() and process.is_alive() and time.monotonic() < limit:
            time.sleep(0.005)
        os.kill(process.pid, signal.SIGINT)
        process.join(60)
    finally:
        process.kill()
    err = (tmp_path / "errors").read_text()
    assert process.exitcode == 130 and "the same command goes on from here" in err and "Traceback" not in err
    assert state.exists() and not (tmp_path / "a" / "weights.safetensors").exists()
    assert run_cli(*words, f"out={tmp_path / 'a'}")[0] == 0
    assert run_cli(*words, f"out={tmp_path / 'b'}")[0] == 0
    resumed, unbroken = ((tmp_path / name / "weights.safetensors").read_bytes() for name in "ab")
    assert resumed == unbroken and not state.parent.exists()


def test_an_interrupt_without_a_message_is_said(run_cli, monkeypatch):
    def stop(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("wordsight.cli.read", stop)
    code, _, err = run_cli("fit", "data=digits")
    assert code == 130 and "wordsight: stopped; the same command goes on from here" in err


def test_ctrl_c_while_it_starts_is_said_in_a_word():
    code = (
        "import sys, wordsight.__main__\n"
        "class Stop:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name == 'wordsight.cli': raise KeyboardInterrupt\n"
        "sys.meta_path.insert(0, Stop())\n"
        "sys.exit(wordsight.__main__.main())"
    )
    done = subprocess.run([sys.executable, "-c", code], env=environment(), capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "\nwordsight: stopped\n")


@pytest.mark.parametrize("word", mostly_slow(("--help", "list"), "list"))
def test_help_and_list_answer_at_once_and_without_torch(word, tmp_path):
    code = (
        f"import sys, wordsight.cli\ntry: wordsight.cli.main(['{word}'])\nfinally: sys.stderr.write(' "
        f"'.join(sys.modules))"
    )
    shown = subprocess.run(
        [sys.executable, "-c", code], env=environment(), capture_output=True, text=True, check=True
    )
    loaded = shown.stderr.split()
    assert "usage: wordsight" in shown.stdout or "aape" in shown.stdout
    assert not {"torch", "transformers", "numpy", "sklearn", "PIL"} & set(loaded)
    # compiled once, as installed packages are
    compiled = environment(PYTHONDONTWRITEBYTECODE="", PYTHONPYCACHEPREFIX=str(tmp_path))
    seconds = []
    for _ in range(3):  # of processor time, which a busy machine does not lengthen
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run(
            [Path(sys.executable).with_name("wordsight"), word],
            env=compiled,
            capture_output=True,
            check=True,
        )
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        seconds.append(after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime)
    assert min(seconds) < 0.3, seconds


def test_an_out_that_is_a_file_is_told(photos, tiny_clip, tmp_path, capsys):
    (tmp_path / "taken").write_text("mine")
    words = [
        f"data={photos}",
        f"backbone={tiny_clip}",
        "method=zero_shot",
        "shots=1",
        f"out={tmp_path}/taken",
    ]
    assert main(["fit", *words]) == 2
    assert "cannot be a folder: File exists" in capsys.readouterr().err
    assert (tmp_path / "taken").read_text() == "mine"


def test_eval_tells_what_its_data_left_out(photos, tiny_clip, tmp_path, capsys):
    words = [f"data={photos}", f"backbone={tiny_clip}", "method=zero_shot", "shots=1", f"out={tmp_path}/run"]
    assert main(["fit", *words]) == 0
    fill_folder(tmp_path / "other")
    (tmp_path / "other" / "red" / ".hidden.png").write_bytes(b"x")
    capsys.readouterr()
    assert main(["eval", f"{tmp_path}/run", f"data={tmp_path}/other"]) == 0
    assert "left out 1 of 19 files" in capsys.readouterr().err
