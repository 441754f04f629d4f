"""From a command line to a config, a verb and an exit code. Imports no torch, so that `--help` is fast."""

import io
import logging
import os
import re
import signal
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import hydra
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException, MissingConfigException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import MissingMandatoryValue, OmegaConfBaseException

from classifier import runs
from classifier.errors import UserError, as_typed, did_you_mean, require_choice
from classifier.runs import CONFIG_DIR, leaves, on_main_process, set_variable
from classifier.untrusted import known_targets, require_plain, targets_in

HELP = {"--help", "-h"}
MULTIRUN = {"--multirun", "-m"}
SHOW_ONLY = HELP | {"--cfg", "-c", "--info", "-i", "--shell-completion", "-sc", "--version", "--hydra-help"}
# as https://hydra.cc/docs/advanced/hydra-command-line-flags lists them
OPTIONS = SHOW_ONLY | MULTIRUN | {"--resolve", "--package", "--run", "--config-path", "--config-name", "--config-dir",
                                  "--experimental-rerun"}  # fmt: skip
STORED = "checkpoint"  # the option of a group that holds what a run or a checkpoint has stored
Prepare = Callable[[str, ExitStack], str]


def main(verb: str, task: Callable[[DictConfig], Any], prepare: Prepare = lambda verb, until_end: verb) -> None:
    """Run `task` on the config that configs/<verb>.yaml and the command line compose, then exit.

    Exit codes: 0 done, or the number that `task` returns; 2 wrong input, explained in one message; 130 stopped by
    Ctrl-C; 143 stopped by SIGTERM; 1 a bug, with its traceback.

    Args:
        prepare: Completes `sys.argv` and names the config to compose. It can have something done at the end.
    """
    if signal.getsignal(signal.SIGINT) == signal.SIG_DFL:  # so the entries have set it while they import
        signal.signal(signal.SIGINT, signal.default_int_handler)
    show_any_text()
    # Hydra prints errors itself and ends with 1, unless this is set: then they arrive here
    wanted = os.environ.get("HYDRA_FULL_ERROR")
    os.environ["HYDRA_FULL_ERROR"] = "1"
    refusals: list[str] = []
    codes = [0]
    config_name = verb

    def run(config: DictConfig) -> Any:
        set_variable("HYDRA_FULL_ERROR", wanted)  # for the processes that a run starts
        if not on_main_process():
            logging.getLogger("classifier").setLevel(logging.WARNING)
        try:
            for text in sys.argv[1:]:
                if text.startswith("~") and text != "~experiment" and text[1:] not in config:  # has it no null?
                    raise UserError(f"{text[1:]}=null: there is no run without; --help shows what it can be")
            result = task(config)
            if isinstance(result, int):  # Hydra does not pass it on
                codes.append(result)
            return result
        except (UserError, MissingMandatoryValue) as error:  # Hydra would print it
            settings = HydraConfig.get()
            several = settings.mode == RunMode.MULTIRUN
            job = f"job {settings.job.num} ({' '.join(settings.overrides.task)}): " if several else ""
            refusals.append(job + explain(error, config_name))
        finally:
            os.environ["HYDRA_FULL_ERROR"] = "1"

    try:
        # -m last, as argparse takes overrides in one piece
        sys.argv[1:] = sorted(quoted(sys.argv[1:]), key=MULTIRUN.__contains__)
        with ExitStack() as until_end:
            config_name = prepare(verb, until_end)
            if HELP & set(sys.argv[1:]):
                _print_help(verb, config_name)
                return
            hydra.main(config_path=str(CONFIG_DIR), config_name=config_name, version_base="1.3")(run)()
    except (UserError, HydraException, OmegaConfBaseException) as error:
        if isinstance(error, OmegaConfBaseException) and not (
            error.full_key or isinstance(error, MissingMandatoryValue)
        ):
            raise  # a bug of ours
        refusals.append(explain(error, config_name))
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
        sys.exit(130)  # as of a program that SIGINT ended
    finally:
        set_variable("HYDRA_FULL_ERROR", wanted)
    for refusal in refusals:
        print(f"error: {refusal}", file=sys.stderr)
    if code := 2 if refusals else max(codes):
        sys.exit(code)


def show_any_text() -> None:
    """Print what the terminal's encoding lacks, such as a class name in Chinese, as `\\u72d7` instead of failing."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def begin_or_resume(verb: str, until_end: ExitStack) -> str:
    """Prepare training: complete the command of a new run, or offer the config of the run that `resume` means."""
    log_dir, resume = Path(argument("log_dir") or "logs"), argument("resume")
    if resume == "auto" and argument("run_dir") is None and on_main_process():
        until_end.enter_context(runs.only_start(sys.argv[1:], log_dir))
    if resume is not None and MULTIRUN & set(sys.argv):
        raise UserError(f"resume={resume} continues one run: leave out -m")
    if resume in (None, "auto"):
        source = argument("init_from")
        if source == "latest" and resume is not None:
            raise UserError("init_from=latest is another one at the next start: name it, to use resume=auto")
        if source is not None:
            replace_arguments({"init_from": str(runs.find_checkpoint(source, log_dir, "init_from"))})
        if argument("experiment") is None and "~experiment" not in sys.argv:  # the default one is for its own data
            if argument("data") is not None:
                sys.argv.insert(1, "~experiment")
            elif (root := argument("data.root")) is not None:
                raise UserError(f"data.root={root} needs an experiment: type experiment=folder_cnn data.root={root}")
        replace_arguments({}, drop=("resume",))
        found, overrides = runs.find_same_run(sys.argv[1:], log_dir, argument("run_dir")) if resume else (None, [])
        if found is None:
            return verb
        # they are in the run's config already, where + has nothing to add
        again = [text.lstrip("+") for text in sys.argv[1:] if "_target_" in text and text not in overrides]
        options = [text for text in sys.argv[1:] if text.startswith("-")]
        resume, sys.argv[1:] = str(found), [*overrides, *again, *options]
    run = runs.find_run(str(resume), log_dir, argument("name") or argument("experiment"))
    _offer_run(run)
    if (hardware := argument("trainer")) is not None:
        # another machine, but as many epochs as before: what this option says itself, without its defaults
        require_choice("trainer", hardware, _options("trainer"))
        own = dict(OmegaConf.load(CONFIG_DIR / "trainer" / f"{hardware}.yaml"))
        own_keys = (f"trainer.{key}={as_typed(own[key])}" for key in own if key != "defaults")
        sys.argv[1:] = [*own_keys, *sys.argv[1:]]
    replace_arguments({"resume": str(run), "run_dir": str(run)}, drop=("experiment", "name", "log_dir", "trainer"))
    return "resume"


def from_checkpoint(values_of: Callable[[Path], Mapping[str, Any]] = lambda path: {}) -> Prepare:
    """Prepare a verb that needs a checkpoint: find its file, and offer what it holds for the command line to change.

    Args:
        values_of: A checkpoint -> group -> what to offer as the option `checkpoint` of this group; by default nothing.
    """

    def prepare(verb: str, until_end: ExitStack) -> str:
        values: Mapping[str, Any] = {"data": {"defaults": ["_base"]}}
        if (path := argument("ckpt_path")) is not None:
            found = runs.find_checkpoint(path, Path(argument("log_dir") or "logs"))
            values = values_of(found)
            replace_arguments({"ckpt_path": str(found)})
        elif not SHOW_ONLY & set(sys.argv[1:]):
            raise UserError(f"{verb}.py needs a checkpoint: ckpt_path=FILE, a run directory, or ckpt_path=latest")
        for group, node in values.items():
            package = "_global_" if group == "run" else None
            ConfigStore.instance().store(group=group, name=STORED, node=dict(node), package=package)
        return verb

    return prepare


def _offer_run(run: Path) -> None:
    """Make a run's stored config the config `resume`, each section an option of its group, to be exchanged."""
    stored, store = runs.stored_config(run), ConfigStore.instance()
    runs.read_starts(run)  # the resumed run will add to them
    require_plain(stored, "", known_targets("**") | _typed_targets())
    groups = [key for key in stored if (CONFIG_DIR / key).is_dir()]
    sections = [{group: None if stored[group] is None else STORED} for group in groups]
    for group in groups:
        whole = isinstance(stored[group], str)  # task, whose options are of the whole config
        option = {group: stored[group]} if whole else stored[group] or {}
        store.store(group=group, name=STORED, node=option, package="_global_" if whole else None)
    node = {
        "defaults": ["_self_", *sections, {"override hydra/job_logging": "stdout"}],
        "hydra": {"run": {"dir": "."}, "output_subdir": None},
        **{key: None if key in groups else value for key, value in stored.items()},  # None where it is switched off
        "resume": "???",
    }
    store.store(name="resume", node=node)


def _typed_targets() -> set[str]:
    """Every `_target_` that an override gives a value, itself or somewhere inside."""
    typed = OverridesParser.create().parse_overrides([text for text in sys.argv[1:] if "_target_" in text])
    return {found for item in typed for found in targets_in({item.key_or_group.rpartition(".")[2]: item.value()})}


def argument(key: str) -> str | None:
    """The value typed as key=value on the command line, unquoted; None where it is absent or null."""
    for text in reversed(sys.argv[1:]):
        name, equals, value = text.partition("=")
        if equals and name.lstrip("+") == key:
            if value[:1] in ("'", '"'):
                return str(OverridesParser.create().parse_override(text).value())
            return None if value == "null" else value
    return None


def override(key: str, value: str) -> str:
    """key=value with the value quoted for Hydra's grammar."""
    # Hydra takes a backslash for itself only before a quote
    escaped = re.sub(r"(\\*)('|$)", lambda match: match[1] * 2 + ("\\'" if match[2] else ""), value)
    return f"{key}='{escaped}'"


def replace_arguments(values: Mapping[str, str], drop: tuple[str, ...] = ()) -> None:
    """Put `values` in the place of what was typed for these keys, and take out the keys in `drop`."""
    gone = {*values, *drop}
    kept = [text for text in sys.argv[1:] if text.partition("=")[0].lstrip("+") not in gone]
    # before the options: after one, argparse takes no more overrides
    sys.argv[1:] = [*(override(key, value) for key, value in values.items()), *kept]


def quoted(arguments: list[str]) -> list[str]:
    """The arguments in Hydra's grammar.

    What Hydra cannot read, or would read as another text than was typed, is a string and gets quotes: paths with `=`,
    regular expressions, and without -m values with a comma. `~/` becomes the home folder, and GROUP=null `~GROUP`.

    Raises:
        UserError: There is no such option, or a value is empty.
    """
    multirun = bool(MULTIRUN & set(arguments))
    result = []
    for text in arguments:
        key, equals, value = text.partition("=")
        if key.startswith("--") and key not in OPTIONS:  # argparse would take --experiment for --experimental-rerun
            raise UserError(f"there is no option {key}: overrides go without dashes, {key[2:]}={value or 'VALUE'}")
        if not equals or key.startswith("-"):
            result.append(text)
        elif value == "":
            name = key or "KEY"
            raise UserError(f"{text} is empty: type {name}=VALUE without blanks around =, or {name}=null")
        elif value == "null" and (CONFIG_DIR / key).is_dir():
            result.append(f"~{key}")
        else:
            value = re.sub(r"(?:^|(?<=,))~(?=/|,|$)", str(Path.home()), value)
            result.append(_quoted(key, value, multirun))
    return result


def _quoted(key: str, value: str, multirun: bool) -> str:
    text = f"{key}={value}"
    try:
        parsed = OverridesParser.create().parse_override(text)
    except HydraException:
        return override(key, value)
    read = parsed.value()
    is_text = isinstance(read, str) and value[0] not in "'\"" and read != value.strip()
    if parsed.is_sweep_override():  # of numbers, or of options of a group, Hydra says that -m is missing
        words = all(isinstance(part, str) for part in getattr(read, "list", [None]))
        is_text = words and not multirun and not (CONFIG_DIR / key).is_dir()
    return override(key, value) if is_text else text


def _print_help(verb: str, config_name: str) -> None:
    """What can be typed. (Hydra's own help lists the groups twice and takes three times as long.)"""
    config, parts = _compose(config_name, [text for text in sys.argv[1:] if not text.startswith("-")])
    comments: dict[str, str] = {}
    for part in parts:
        text = file.read_text("utf-8") if (file := CONFIG_DIR / f"{part.config_path}.yaml").is_file() else ""
        beside = {key: found for key, line in _keys(text, part.package) if (found := line.partition("  # ")[2])}
        comments = {**beside, **comments}  # the first one says what a key means, an experiment's why it has this value
        if part.package and (about := re.match(r"(?:# @.*\n)?# (.*)", text)):  # what the file is for
            comments[part.package] = about[1]
    head, _, defaults = (CONFIG_DIR / f"{verb}.yaml").read_text(encoding="utf-8").partition("\ndefaults:")
    print(f"{head}\n\nGROUPS, of which GROUP=NAME picks one:")
    for group in re.findall(r"^  - (?:optional )?(\w+):", defaults, re.MULTILINE):
        print(f"  {group}: {', '.join(_options(group))}")
    print("\nKEYS, which KEY=VALUE overrides (-m KEY=A,B runs each value, --cfg job prints these alone):\n")
    for key, line in _keys(OmegaConf.to_yaml(config)):
        print(f"{line}  # {comments[key]}" if key in comments else line)


def _keys(text: str, package: str = "") -> Iterator[tuple[str, str]]:
    """Each line of a YAML file, with the key that stands there, such as `optimizer.lr`."""
    path: list[str] = []
    for line in text.splitlines():
        if found := re.match(r"( *)(\w+):", line):
            path[len(found[1]) // 2 :] = [found[2]]
        yield ".".join([package, *path]).lstrip(".") if found else "", line


def _options(group: str) -> list[str]:
    return sorted(path.stem for path in (CONFIG_DIR / group).glob("[!_]*.yaml"))


def _compose(config_name: str, overrides: list[str]) -> tuple[DictConfig, Any]:
    """The config, and Hydra's list of the files that it is made of."""
    with hydra.initialize_config_dir(str(CONFIG_DIR), version_base="1.3"):
        parts = GlobalHydra.instance().config_loader().compute_defaults_list(config_name, overrides, RunMode.RUN)
        return hydra.compose(config_name, overrides), parts.defaults


def explain(error: Exception, config_name: str) -> str:
    """A refusal, of ours or of Hydra's, in words that say what to type."""
    text = str(error)
    if isinstance(error, UserError):  # from a DataLoader worker it comes with that process's traceback in its text
        return text.rsplit("Error: ", 1)[-1].strip() if "Original Traceback" in text else text
    if isinstance(error, MissingMandatoryValue):
        key = error.full_key or text.rsplit(" ", 1)[-1]
        return f"{key} is not set: type {key}=..."
    if isinstance(error, MissingConfigException) and error.missing_cfg_file and error.options:
        group, _, option = str(error.missing_cfg_file).partition("/")
        folder = f"data.root={option} or " if group == "data" and Path(option).exists() else ""
        near = did_you_mean(option, set(error.options) - {"_base"})
        others = f" Any other of timm's: {group}=timm {group}.name={option}" if "timm" in error.options else ""
        return f"{group}={option} does not exist: {folder}{near}{others}"
    if found := re.search(r"parsing override '([^']*)'\s+missing EQUAL", text):
        return f"{found[1]} is no KEY=VALUE: a folder is given as data.root={found[1]}; --help shows the keys"
    if isinstance(error, HydraException) and (found := re.search(r"Could not override '([^'@]+)", text)):
        chosen = [text for text in sys.argv[1:] if (CONFIG_DIR / f"{text.replace('=', '/', 1)}.yaml").is_file()]
        known = ["experiment", *leaves(OmegaConf.to_container(_compose(config_name, chosen)[0]), sections=True)]
        same_end = [key for key in known if re.search(rf"[._]{found[1].rpartition('.')[2]}$", key)]
        return f"there is no key {found[1]}: {did_you_mean(found[1], same_end or known)}"
    return " ".join(text.split())
