"""`flip=true`: evaluating and predicting by an image and its mirror image."""

import csv
from pathlib import Path

import pytest
import torch
from PIL import Image, ImageOps

from classifier.training.checkpoints import open_model
from tests import generate
from tests.verbs.command import QUICK, metrics, run


@pytest.fixture(scope="module")
def workplace(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a trained run/, and photos/ of which one is its own mirror image."""
    cwd = tmp_path_factory.mktemp("flip")
    arguments = ("experiment=folder_cnn", "model=simple_cnn", *QUICK, f"data.root={folder}", "run_dir=run")
    assert run("train", *arguments, cwd=cwd).code == 0
    for number, color in enumerate(("red", "green", "blue")):
        generate.save(generate.picture(color, seed=number), cwd / "photos" / f"{color}.png")
    half = generate.picture("red", (24, 48), seed=5)
    whole = Image.new("RGB", (48, 48))
    whole.paste(half, (0, 0))
    whole.paste(ImageOps.mirror(half), (24, 0))
    generate.save(whole, cwd / "photos" / "symmetric.png")
    return cwd


def predicted(cwd: Path, *arguments: str) -> dict[str, dict[str, float]]:
    """File -> class -> probability."""
    result = run("predict", "ckpt_path=run", "inputs=photos", "num_workers=0", *arguments, cwd=cwd)
    assert result.code == 0, result.err
    with (cwd / "predictions.csv").open() as file:
        return {
            Path(row["path"]).stem: {row[f"label{k}"]: float(row[f"confidence{k}"]) for k in ("", "_2", "_3")}
            for row in csv.DictReader(file)
        }


@torch.no_grad()
def test_prediction_is_the_mean_of_both(workplace: Path) -> None:
    plain, flipped = predicted(workplace), predicted(workplace, "flip=true")
    model, _ = open_model(workplace / "run" / "checkpoints" / "best.ckpt")
    for name in ("red", "green", "blue"):
        image = model.preprocessing(workplace / "photos" / f"{name}.png")[None]
        both = [model(pixels).softmax(1)[0].tolist() for pixels in (image, image.flip(3))]
        own, mirrored = (dict(zip(model.classes, values, strict=True)) for values in both)
        assert plain[name] == pytest.approx(own, abs=2e-6)
        assert flipped[name] == pytest.approx({key: (own[key] + mirrored[key]) / 2 for key in own}, abs=2e-6)
        assert flipped[name] != pytest.approx(plain[name], abs=1e-5)
    assert flipped["symmetric"] == pytest.approx(plain["symmetric"], abs=2e-6)


def test_evaluation_says_so(workplace: Path) -> None:
    for name, value in (("plain", "false"), ("flipped", "true")):
        result = run("eval", "ckpt_path=run", f"flip={value}", f"output_dir={name}", cwd=workplace)
        assert result.code == 0, result.err
    plain, flipped = metrics(workplace / "plain"), metrics(workplace / "flipped")
    assert "flip" not in plain
    assert flipped["flip"] is True
    assert flipped["test/loss"] != plain["test/loss"]
    assert plain["test/loss"] == metrics(workplace / "run")["test/loss"]


@pytest.mark.parametrize("verb", ["eval", "predict"])
def test_a_bad_value(verb: str, workplace: Path) -> None:
    more = ("inputs=photos",) if verb == "predict" else ()
    result = run(verb, "ckpt_path=run", *more, "flip=sometimes", cwd=workplace)
    assert result.code == 2
    assert "error: flip=sometimes must be true or false" in result.err
