"""The verb `caption`: from the command line's options to wordsight.captioner, and its result as plain values.
Imports no torch before it runs.
"""

from __future__ import annotations

import argparse
from typing import Any

from wordsight import hints, terminal
from wordsight.arguments import BACKBONE, CSV, DEVICE, LM, MAX_PIXELS, Verb, argument, natural
from wordsight.config import WordsightError
from wordsight.early import check_reading

TEMPERATURE = 1.0  # of --sample


def caption(options: argparse.Namespace) -> dict[str, Any]:
    hints.check_run_or_model("caption", options.run)
    hints.check_images(options.images)
    check_reading(options.max_pixels, options.csv, options.images)
    temperature = _temperature(options)
    from wordsight.captioner import caption

    names = ("top_p", "max_new_tokens", "seed", "batch", "csv", "backbone", "lm", "device", "max_pixels")
    wanted = {name: getattr(options, name) for name in names}
    captions = caption(options.run, options.images, beams=options.beam, temperature=temperature, **wanted)
    entries = ({"image": one.picture.name, "caption": one.text} for one in captions)
    return {"captions": entries, "skipped": captions.skipped, "account": captions.account.to_dict}


def _temperature(options: argparse.Namespace) -> float:
    """0 where the likeliest token always follows. Errors: WordsightError where sampling's options stand
    alone.
    """
    if options.sample and options.temperature == 0:
        raise WordsightError("--sample draws tokens, and --temperature 0 draws none; leave one of them out")
    if options.sample:
        return TEMPERATURE if options.temperature is None else options.temperature
    if options.temperature is not None or options.top_p < 1:
        raise WordsightError("--temperature and --top-p are of tokens that are drawn; give --sample too")
    return 0.0


CAPTION = Verb(
    caption,
    terminal.caption,
    "say what images show, with a run of limber: wordsight caption RUN *.jpg",
    [
        argument("run", metavar="RUN", help="a run of limber, or an image-text-to-text model"),
        argument("images", nargs="+", metavar="IMAGE", help="images, or folders of them"),
        argument("--beam", type=int, default=1, metavar="N", help="the likeliest text among N (beam search)"),
        argument("--sample", action="store_true", help="draw tokens instead of taking the likeliest"),
        argument("--temperature", type=float, metavar="T", help="of --sample: below 1 is surer (default 1)"),
        argument(
            "--top-p",
            type=float,
            default=1.0,
            metavar="P",
            help="of --sample: draw among the likeliest tokens that have P of the probability (default 1)",
        ),
        argument(
            "--seed",
            type=natural,
            default=1,
            metavar="N",
            help="what is drawn from, with each image (default 1)",
        ),
        argument(
            "--max-new-tokens", type=int, default=32, metavar="N", help="tokens of a caption (default 32)"
        ),
        argument(
            "--batch", type=int, metavar="N", help="captions written together (default 16, on a GPU 128)"
        ),
        CSV,
        BACKBONE,
        LM,
        DEVICE,
        MAX_PIXELS,
    ],
)
