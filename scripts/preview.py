"""Draw samples as training sees them: python scripts/preview.py data=folder data.root=my_photos"""

import signal

if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C ends the imports in silence; `main` takes it back

from omegaconf import DictConfig

from classifier.cli import main


def preview(config: DictConfig) -> object:
    from classifier.tools.preview import preview  # not at the top: `--help` needs no torch

    return preview(config)


if __name__ == "__main__":
    main("preview", preview)
