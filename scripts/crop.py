"""Write boxes or images as class folders: python scripts/crop.py output=my_crops data=folder data.root=my_photos"""

import signal

if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C ends the imports in silence; `main` takes it back

from omegaconf import DictConfig

from classifier.cli import main


def crop(config: DictConfig) -> object:
    from classifier.tools.folders import crop  # not at the top: `--help` needs no torch

    return crop(config)


if __name__ == "__main__":
    main("crop", crop)
