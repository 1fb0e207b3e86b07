"""Templates: CLIP's and CoOp's sentences about any class, with one place for its name."""

from __future__ import annotations

from wordsight.files import WordsightError


def _clip80() -> tuple[str, ...]:
    """CLIP's 80 templates for ImageNet. Nearly all come as a pair, "a" and "the", so the pairs are written
    once; the order carries no meaning.
    """
    looks = (
        "bad",
        "low resolution",
        "cropped",
        "bright",
        "dark",
        "close-up",
        "black and white",
        "pixelated",
        "jpeg corrupted",
        "blurry",
        "good",
    )
    made = "rendering", "sculpture", "painting", "drawing", "sketch", "doodle", "tattoo", "rendition"
    kinds = "plastic", "toy", "plushie", "cartoon", "embroidered", "origami"
    traits = "hard to see ", "clean ", "dirty ", "cool ", "nice ", "weird ", "large ", "small ", ""
    forms = (
        [f"a {look} photo of %s {{}}." for look in looks]
        + [f"a {thing} of %s {{}}." for thing in made]
        + [f"%s {kind} {{}}." for kind in kinds]
    )
    forms += [f"a photo of %s {trait}{{}}." for trait in traits] + [
        "art of %s {}.",
        "graffiti of %s {}.",
        "itap of %s {}.",
        "%s {} in a video game.",
    ]
    alone = "a photo of many {}.", "a photo of one {}.", "a photo of my {}.", "itap of my {}."
    return (*(form % word for form in forms for word in ("a", "the")), *alone)


TEMPLATE_SETS: dict[str, tuple[str, ...]] = {
    # the field's one template per dataset (CoOp), under torchvision's dataset names
    "imagenet": ("a photo of a {}.",),
    "caltech101": ("a photo of a {}.",),
    "oxford_pets": ("a photo of a {}, a type of pet.",),
    "stanford_cars": ("a photo of a {}.",),
    "flowers102": ("a photo of a {}, a type of flower.",),
    "food101": ("a photo of {}, a type of food.",),
    "fgvc_aircraft": ("a photo of a {}, a type of aircraft.",),
    "sun397": ("a photo of a {}.",),
    "dtd": ("{} texture.",),
    "eurosat": ("a centered satellite photo of {}.",),
    "ucf101": ("a photo of a person doing {}.",),
    # ensembles for any dataset (CLIP)
    "clip7": (
        "itap of a {}.",
        "a bad photo of the {}.",
        "a origami {}.",
        "a photo of the large {}.",
        "a {} in a video game.",
        "art of the {}.",
        "a photo of the small {}.",
    ),
    "clip80": _clip80(),
}


def fill(template: str, name: str) -> str:
    """The template with the class name in place of its one `{}`; `_` in the name is read as a space."""
    if template.count("{}") != 1:
        raise WordsightError(
            f"template {template!r} holds {{}} {template.count('{}')} times; it must hold it once, as in "
            f"'a photo of a {{}}.'"
        )
    return template.replace("{}", name.replace("_", " "))
