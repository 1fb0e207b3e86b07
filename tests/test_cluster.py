"""On a cluster all comes out as on one machine, whatever is killed; where there is none, one sentence says
so.
"""

import contextlib
import json
import logging
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import psutil
import pytest
import torch
from safetensors.torch import load_file
from standins import Stub, encoded, fill_folder, pictures, shards

from wordsight import cluster
from wordsight.backbones import load_backbone
from wordsight.cli import main
from wordsight.cluster import WorkerKilled, check_address, engine
from wordsight.config import WordsightError
from wordsight.coverage import coverage
from wordsight.data import Picture
from wordsight.data.features import image_features
from wordsight.sentences.writers import write_sentences
from wordsight.settings import WriterSettings
from wordsight.suites import SuiteSettings, run_suite
from wordsight.workers import each

HEAD = """
import sys, ray
ray.init(num_cpus=2, include_dashboard=False, object_store_memory=100 * 2**20, logging_level="ERROR",
         log_to_driver=False)
print(ray.get_runtime_context().gcs_address, flush=True)
sys.stdin.read()
"""


# -- no cluster --


@pytest.mark.slow
def test_one_sentence_and_exit_code_2_where_no_cluster_is(tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", type("Ray", (), {"is_initialized": staticmethod(lambda: False)}))
    with socket.create_server(("127.0.0.1", 0)) as closed:
        address = f"127.0.0.1:{closed.getsockname()[1]}"
    (tmp_path / "names.txt").write_text("fox\nowl\n")
    words = ["data=digits", "backbone=micro", "engine=ray", f"out={tmp_path / 'out'}"]
    for verb in (["fit"], ["suite", "few-shot"]):
        assert main([*verb, *words, f"address={address}"]) == 2
        err = capsys.readouterr().err
        assert f"no Ray cluster answers at {address}" in err and "`ray start --head`" in err
    monkeypatch.setenv("RAY_ADDRESS", address)
    for verb in (
        ["coverage", __file__, "--classes", str(tmp_path / "names.txt"), "--engine", "ray"],
        ["sentences", "classes=fox", "model=m", "local=true", "engine=ray", f"out={tmp_path / 's.json'}"],
        ["search", str(fill_folder(tmp_path / "photos")), "a fox", "backbone=micro", "engine=ray"],
    ):
        assert main(verb) == 2 and f"at {address}" in capsys.readouterr().err
    assert len(list(tmp_path.iterdir())) == 2


def test_what_is_no_address_and_what_answers_otherwise():
    for address in ("head", ":6379", "head:port", "http://head:8265", "ray://head:10001"):
        with pytest.raises(WordsightError, match="is no address of a Ray cluster; give HOST:PORT"):
            check_address(address)
    with socket.create_server(("127.0.0.1", 0)) as server:

        def answer():
            with server.accept()[0] as connection:
                connection.recv(100)
                connection.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")

        thread = threading.Thread(target=answer)
        thread.start()
        with pytest.raises(WordsightError, match="something else answers there"):
            check_address(f"127.0.0.1:{server.getsockname()[1]}")
        thread.join()


def test_engines_that_cannot_be(monkeypatch):
    for name, address, says in (
        ("dask", None, "engine='dask' is none; give here or ray"),
        ("here", "head:6379", "give engine=ray with it"),
    ):
        with pytest.raises(WordsightError, match=says), engine(name, address):
            pass
    with pytest.raises(WordsightError, match="local=true; a server answers workers=4 questions at once"):
        WriterSettings("m", base_url="http://localhost:1/v1", engine="ray")
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(WordsightError, match=r'pip install "wordsight\[ray\]"'), engine("ray"):
        pass


# -- two processes of a local cluster --


@pytest.fixture(scope="module")
def head(tmp_path_factory):
    """The head of a cluster with two processes, which ends with the tests."""
    pytest.importorskip("ray", reason="Ray is not installed: pip install 'wordsight[ray]'")
    environment = os.environ | {
        "RAY_AUTH_MODE": "disabled",
        "RAY_USAGE_STATS_ENABLED": "0",
        "PYTHONPATH": str(Path(__file__).parent),
        "WORDSIGHT_CACHE": str(tmp_path_factory.mktemp("cluster-cache")),
    }
    with subprocess.Popen(
        [sys.executable, "-c", HEAD], stdin=-1, stdout=-1, text=True, env=environment
    ) as process:
        process.address = process.stdout.readline().strip()
        yield process
        process.stdin.close()


@pytest.fixture(scope="module")
def far(head):
    """The same, connected."""
    with engine("ray", head.address):
        yield cluster.current()


def deadly(mark: Path):
    """What ends its process as the system would, the first time. Pickled whole, without what we import."""

    def die():
        if not mark.exists():
            mark.touch()
            os.kill(os.getpid(), signal.SIGKILL)

    return die


@pytest.mark.slow
def test_each_item_once_whichever_process_is_killed(far, tmp_path, said, monkeypatch):

    def work(number, add, die):
        if number == 7:
            die()
        logging.getLogger("wordsight").info("saw %d", number)
        return number + add, os.getpid()

    given = (100, deadly(tmp_path / "mark"))
    found = list(each(work, range(20), jobs=1, given=given, processes=True))
    assert sorted(number for number, _ in found) == list(range(100, 120)) and (tmp_path / "mark").exists()
    assert os.getpid() not in {pid for _, pid in found} and 2 <= len({pid for _, pid in found}) <= 3
    assert sorted(said) == sorted(f"saw {number}" for number in range(20))

    def ends(number):
        if number == 1:
            os.kill(os.getpid(), signal.SIGKILL)

    monkeypatch.setattr(cluster, "TRIES", 1)
    with pytest.raises(WorkerKilled, match=r"2 processes were ended from outside at the same work") as killed:
        list(each(ends, [1], jobs=1, processes=True))
    assert killed.value.item == 1

    def refuses(number):
        raise WordsightError("no")

    with pytest.raises(WordsightError, match=r"^no$"):
        list(each(refuses, range(4), jobs=1, processes=True))
    results = each(time.sleep, [0, 600, 600, 600], jobs=1, processes=True)
    next(results)
    results.close()  # as Ctrl-C does
    assert sorted(each(abs, range(4), jobs=1, processes=True)) == [0, 1, 2, 3]  # both are free again


@pytest.mark.slow
def test_vectors_are_those_of_one_machine_and_none_is_lost(far, tmp_path, monkeypatch):
    contents = [*map(encoded, range(60)), b"no image", encoded(3)]
    chosen, mark, image = pictures(*contents), tmp_path / "mark", contents[40]
    die = deadly(mark)

    def load():
        die()
        return image

    chosen[40] = Picture("picture 40", load)
    options = {"views": 2, "batch_size": 8}
    there = image_features(Stub(), chosen, folder=tmp_path / "there", **options)
    assert mark.exists()
    written = shards(tmp_path / "there")
    kept = [row for path in written for row in load_file(path)["digests"].tolist()]
    assert len(kept) == len(set(map(tuple, kept))) == 60
    again = image_features(Stub(), chosen, folder=tmp_path / "there", **options)
    assert torch.equal(again.vectors, there.vectors) and shards(tmp_path / "there") == written
    monkeypatch.setattr(cluster, "_current", None)
    one = image_features(Stub(), pictures(*contents), folder=tmp_path / "here", **options)
    assert torch.equal(there.vectors, one.vectors) and there.kept == one.kept
    assert there.skipped == one.skipped and len(one.skipped) == 1


@pytest.mark.slow
def test_data_that_a_machine_does_not_see_is_no_damaged_image(far, tmp_path):
    ours = os.getpid()

    def load():
        if os.getpid() != ours:
            raise FileNotFoundError("no such file")
        return encoded(1)

    with pytest.raises(
        WordsightError, match=r"is read here, but not on machine .*no such file; data must lie"
    ):
        image_features(Stub(), [*pictures(encoded(2)), Picture("b.jpg", load)], folder=tmp_path)


@pytest.mark.slow
def test_coverage_and_sentences_are_those_of_one_machine(far, lm, tmp_path, monkeypatch):
    monkeypatch.setattr(sys.modules["wordsight.coverage"], "PIECE", {"phrases": 10})
    captions = tmp_path / "captions.txt"
    captions.write_text("".join(f"a dog and {number} cats\n" * (number % 3) for number in range(300)))
    names = ["fox", "owl", "red fox", "barn owl", "dog"]
    settings = WriterSettings(str(lm), local=True, per_question=20, max_tokens=8)

    def both(place):
        covered = coverage(captions, ["dog", "cat", "okapi"])
        write_sentences(names, settings, tmp_path / place)
        return covered, (tmp_path / place).read_bytes()

    there = both("there.json")
    monkeypatch.setattr(cluster, "_current", None)
    assert there == both("here.json") and there[0]["counts"] == {"dog": 300, "cat": 300, "okapi": 0}
    assert len(json.loads(there[1])["sentences"]["fox"]) > 20


@pytest.mark.slow
def test_a_suite_ends_in_the_same_bytes_though_a_process_is_killed_in_the_middle(
    far, head, tmp_path, monkeypatch
):
    settings = SuiteSettings(
        "few-shot",
        data=("digits",),
        methods=("taskres",),
        seeds=(1, 2, 3),
        shots=(2,),
        backbone="micro",
        train={"epochs": 1, "min_steps": 150, "save_seconds": 0.02},
    )
    killed = []

    def kill_one():
        while not list(tmp_path.glob("there/**/state.safetensors")):
            time.sleep(0.02)
        below = psutil.Process(head.pid).children(recursive=True)
        at_work = next(one for one in below if "ray::w" in one.name())
        at_work.kill()
        killed.append(at_work.pid)

    thread = threading.Thread(target=kill_one, daemon=True)
    thread.start()
    there = run_suite(replace(settings, out=str(tmp_path / "there")))
    thread.join(1)
    assert len(killed) == 1 and there["fitted"] == 6 and there["failed"] == []  # with zero-shot
    monkeypatch.setattr(cluster, "_current", None)
    run_suite(replace(settings, out=str(tmp_path / "here")), backbone=load_backbone("micro"))
    names = [one.relative_to(tmp_path / "here") for one in (tmp_path / "here").rglob("*.safetensors")]
    names += [one.relative_to(tmp_path / "here") for one in (tmp_path / "here").rglob("*.csv")]
    assert len([name for name in names if name.parent.name.startswith("taskres")]) >= 3
    for name in names:
        assert (tmp_path / "there" / name).read_bytes() == (tmp_path / "here" / name).read_bytes()
    for run in {name.parent for name in names}:
        lines = (tmp_path / "there" / run / "metrics.jsonl").read_text().splitlines()
        events = [json.loads(line)["event"] for line in lines]
        assert events.count("fit") == events.count("eval") == 1


@pytest.mark.slow
def test_a_folder_that_the_machines_do_not_share_is_told(far, tmp_path, monkeypatch):
    far.check_shared(tmp_path)
    assert not list(tmp_path.iterdir())
    monkeypatch.setattr(cluster, "_sees", lambda path: ("node-7", False))
    with pytest.raises(WordsightError, match=r"1 of 1 machines of the cluster, node-7 first, do not see"):
        far.check_shared(tmp_path)


def test_what_ray_says_of_a_machine_stands_in_no_answer(capsys):
    with contextlib.redirect_stdout(cluster._Answers(sys.stdout)):
        thread = threading.Thread(target=print, args=("a node has died",), name="ray_listen_error_messages")
        thread.start()
        thread.join()
        print("{}", flush=True)
    assert capsys.readouterr() == ("{}\n", "a node has died\n")
