"""Label images: python src/predict.py ckpt_path=latest inputs=photos/ output=predictions.csv"""

from omegaconf import DictConfig

from classifier.cli import main


def predict(config: DictConfig) -> object:
    from classifier import verbs  # not at the top: `--help` does without torch

    return verbs.predict(config)


if __name__ == "__main__":
    main("predict", predict)
