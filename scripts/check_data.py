"""Report what is wrong with a data set: python scripts/check_data.py data=folder data.root=my_photos"""

import signal

if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C ends the imports in silence; `main` takes it back

from omegaconf import DictConfig

from classifier.cli import main


def check(config: DictConfig) -> int:
    from classifier.tools.check_data import check_data  # not at the top: `--help` needs no torch

    return check_data(config)


if __name__ == "__main__":
    main("check_data", check)
