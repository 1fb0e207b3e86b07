"""Classify images with what `wordsight export RUN OUT --onnx` wrote, without Wordsight and without torch:

pip install numpy pillow onnxruntime
python examples/onnx_classify.py OUT image.jpg ...
"""

import json
import sys
from pathlib import Path

import numpy as np
import onnxruntime
from PIL import Image, ImageOps


def pixels_of(image: Image.Image, recipe: dict) -> np.ndarray:
    """The graph's input of an image, uint8 [3, H, W]: upright, RGB, resized, cropped in the middle."""
    image = ImageOps.exif_transpose(image).convert("RGB")
    resize, crop = recipe["resize"], recipe["crop"]
    if "shortest_edge" in resize:
        short = min(image.size)
        width, height = (resize["shortest_edge"] * side // short for side in image.size)
        image = image.resize((width, height), recipe["resample"])
    elif resize:
        image = image.resize((resize["width"], resize["height"]), recipe["resample"])
    if crop:
        left, top = (image.width - crop["width"]) // 2, (image.height - crop["height"]) // 2
        image = image.crop((left, top, left + crop["width"], top + crop["height"]))
    return np.asarray(image).transpose(2, 0, 1)


def main(folder: str, files: list[str]) -> None:
    session = onnxruntime.InferenceSession(str(Path(folder) / "model.onnx"))
    facts = json.loads(session.get_modelmeta().custom_metadata_map["wordsight"])
    outputs = [output.name for output in session.get_outputs()]
    for file in files:
        with Image.open(file) as image:
            pixels = pixels_of(image, facts["pixels"])[None]
        found = dict(zip(outputs, session.run(outputs, {"pixels": pixels})))
        (chances,) = found["probabilities"]
        best = int(chances.argmax())
        strange = facts["far"] is not None and found["distance"][0] > facts["far"]
        unlike = "  unlike all training images" * bool(strange)
        print(f"{file}  {facts['class_names'][best]} {chances[best]:.1%}{unlike}")


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:])
