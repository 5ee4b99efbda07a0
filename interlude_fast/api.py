"""The front door: what the command line does, as functions. Keywords are the command line's flags."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from typing_extensions import Unpack

from interlude_fast import config as configuration
from interlude_fast.config import ExperimentConfig
from interlude_fast.data.progress import Progress, RichProgress
from interlude_fast.errors import ConfigError
from interlude_fast.flags import Flags, Place, Settings, data_argument, overrides

if TYPE_CHECKING:
    import numpy as np

    from interlude_fast.evaluation.embeddings import Embeddings
    from interlude_fast.evaluation.predict import Predictions
    from interlude_fast.evaluation.trained_model import TrainedModel
    from interlude_fast.experiment.import_checkpoint import Imported
    from interlude_fast.experiment.result import Result
    from interlude_fast.sweeps.ablate import Ablation
    from interlude_fast.sweeps.compare import Comparison
    from interlude_fast.sweeps.seeds import Seeds


def load_config(config: Place | None = None, set: Settings = (), **flags: Unpack[Flags]) -> ExperimentConfig:
    """The configuration that `train` would run, typed, with every default written out.

    Args:
        config: a YAML file. set: any setting, e.g. {"method.tau": 0.9}. flags: see Flags.

    Raises:
        ConfigError: an unknown setting, a value out of range, or settings that contradict each other.
    """
    return configuration.load(Path(config) if config else None, overrides(set, flags))


def train(
    data: Place | None = None,
    *,
    run_dir: Place | None = None,
    resume: bool = False,
    config: Place | None = None,
    set: Settings = (),
    quiet: bool = False,
    **flags: Unpack[Flags],
) -> Result:
    """Train one run. With no arguments: InterLUDE on the embedded digits, 40 labels.

    Args:
        data: a folder of images, a table (.csv) or arrays (.npz, .npy): where the images are, and their kind of
            dataset.
        run_dir: folder of the run, new; None chooses a free one under runs/.
        resume: resume the run in `run_dir`, exactly.
        config: a YAML file. set: any setting, e.g. {"method.tau": 0.9}.
        quiet: show no progress. flags: see Flags, e.g. dataset="cifar10", labels=250.

    Returns:
        Result: `.error`, `.scores["test"]["ema"]`, `.directory`.

    Raises:
        InterludeError: one line that says what is wrong and what to do; nothing that exists is changed.
    """
    from interlude_fast.experiment import run as runs

    directory, file = (Path(place) if place else None for place in (run_dir, config))
    asked = [*data_argument(data, flags), *overrides(set, flags)]
    wanted = runs.resume_config(directory, file, asked) if resume else configuration.load(file, asked)
    return runs.train_run(wanted, directory, resume=resume, console=_console(quiet))


def probe(data: Place | None = None, **flags: Any) -> Result:
    """What a pretrained network's features are worth as they are: logistic regression on the embeddings of the
    labeled images, and nearest neighbours. It leaves a run, for predict, evaluate and load_model.

    Args:
        data: a folder of images, a table or arrays. flags: all others that train takes.

    Returns:
        Result: `.scores["test"]["probe"]` and `["knn"]` with intervals; "ema" and "raw" are the probe's network.

    Raises:
        InterludeError: as train.
    """
    return train(data, **{**flags, "method": "probe"})


def sweep(
    grid: Mapping[str, Sequence[Any]] | None = None,
    *,
    data: Place | None = None,
    seeds: int | Iterable[int] = (0,),
    out: Place | None = None,
    each: bool = False,
    jobs: int | None = None,
    resume: bool = False,
    config: Place | None = None,
    set: Settings = (),
    quiet: bool = False,
    **flags: Unpack[Flags],
) -> Ablation | Seeds:
    """Train every combination of a grid with every seed, and write a table after every run. What `out` holds
    already is not done again; a run that fails does not end the others (see `.failures`, `.raise_failures()`).

    Args:
        grid: setting -> values, e.g. {"method.alpha": [0, 0.1]}; None: one configuration with several seeds.
        out: folder of the runs; with a grid it must be named.
        each: the base configuration and every axis by itself, instead of all combinations.
        jobs: runs at a time; None: one, or for seeds alone as many as the device holds.
        resume: for seeds alone: the configuration of the runs in `out` is the base.
        data, config, set, quiet, flags: as train takes them.

    Raises:
        InterludeError: before any training, where something in the grid, its data or `out` does not fit.
    """
    from interlude_fast.sweeps.ablate import ablate
    from interlude_fast.sweeps.grid import SHORT, Axis
    from interlude_fast.sweeps.seeds import seed_configs, train_seeds

    file, folder, console = Path(config) if config else None, Path(out) if out else None, _console(quiet)
    asked = [*data_argument(data, flags), *overrides(set, flags)]
    seeds = [seeds] if isinstance(seeds, int) else list(seeds)
    if each and grid is None:
        raise ConfigError("each varies one axis of a grid at a time: give a grid")
    if resume and grid is not None:
        raise ConfigError("a grid is resumed by the same call; resume is for seeds alone")
    if grid is None:
        if resume and folder is None:
            raise ConfigError("--resume wants the folder of the runs to resume: --run-dir DIR --resume")
        configs = seed_configs(seeds, asked, file, folder if resume else None)
        return train_seeds(configs, folder, processes=jobs, console=console)
    if folder is None:
        raise ConfigError("a grid wants a folder for its runs: out=FOLDER")
    axes = [Axis(SHORT.get(key, key), _several(key, values)) for key, values in grid.items()]
    return ablate(axes, seeds, asked, folder, each=each, file=file, processes=jobs or 1, console=console)


def compare(
    methods: Sequence[str],
    *,
    seeds: int | Iterable[int] = (0,),
    jobs: int = 1,
    config: Place | None = None,
    set: Settings = (),
    quiet: bool = False,
    **flags: Unpack[Flags],
) -> Comparison:
    """Train several methods with the same labeled images and seeds, side by side.

    Args:
        methods: names. jobs: runs at a time. seeds, config, set, quiet, flags: as sweep takes them.

    Raises:
        InterludeError: before any training, where a run is not configured well or there are no test images.
    """
    from interlude_fast.sweeps import compare as comparison

    if flags.get("method") is not None:
        raise ConfigError("compare takes the names of methods, in its first argument, and no method beside them")
    file, asked, console = Path(config) if config else None, overrides(set, flags), _console(quiet)
    seeds, names = [seeds] if isinstance(seeds, int) else list(seeds), _several("methods", methods)
    return comparison.compare(list(names), seeds, asked, file=file, processes=jobs, console=console)


def evaluate(
    run: Place,
    *,
    network: str | Sequence[str] = (),
    fgsm: int | Sequence[int] = (),
    transfer: Mapping[str, Place] | None = None,
    device: str | None = None,
    data_root: Place | None = None,
    labeled: Place | None = None,
    unlabeled: Place | None = None,
    test: Place | None = None,
    quiet: bool = False,
) -> Result:
    """Evaluate the saved networks of a run on its test and validation images, and on others, in detail.

    Args:
        run: a run directory. network: "ema", "raw", "best_on_validation"; none: all that there are.
        fgsm: pixel steps of the attack, e.g. [2, 4, 8].
        transfer: name -> another test set: class folders, .csv or .npz.
        device: auto, cpu, cuda or cuda:<i>; None: the run's own.
        data_root, labeled, unlabeled, test: where the data are now.

    Raises:
        InterludeError: not a finished run's folder, data that do not fit, or nothing to evaluate.
    """
    from interlude_fast.evaluation.evaluate import evaluate_run

    places = {name: Path(place) for name, place in (transfer or {}).items()}
    now = {"device": device, "data_root": data_root, "labeled": labeled, "unlabeled": unlabeled, "test": test}
    return evaluate_run(
        *(Path(run), overrides((), now)),
        networks=[network] if isinstance(network, str) else network,
        fgsm=[fgsm] if isinstance(fgsm, int) else fgsm,
        transfer=places,
        progress=_progress(quiet),
    )


def load_model(run: Place, network: str = "ema", device: str | None = None) -> TrainedModel:
    """A run's network with its preprocessing: `.predict`, `.evaluate`, `.embed`.

    Args:
        network: "ema", "raw" or "best_on_validation". device: auto (default), cpu, cuda or cuda:<i>.

    Raises:
        InterludeError: not a finished run's folder, or no such network or device.
    """
    from interlude_fast.evaluation.trained_model import TrainedModel

    return TrainedModel.load(Path(run), network, device)


def predict(
    run: Place,
    images: Place | Sequence[Place] | np.ndarray,
    *,
    network: str = "ema",
    device: str | None = None,
    quiet: bool = False,
) -> Predictions:
    """Classify images with a run's network: `.labels`, `.probabilities`, `.to_csv()`.

    Args:
        images: a file or folder, several, or uint8 [N, H, W, C].
        network, device: as load_model takes them.

    Raises:
        InterludeError: not a finished run's folder, a path that does not exist, or no image that can be read.
    """
    return load_model(run, network, device).predict(images, _progress(quiet))


def embed(
    run_or_model: Place,
    images: Place | Sequence[Place] | np.ndarray,
    out: Place | None = None,
    *,
    network: str | None = None,
    device: str | None = None,
    overwrite: bool = False,
    quiet: bool = False,
) -> Embeddings:
    """What a frozen network makes of images: `.embeddings` float32 [N, D], `.paths`, of a run `.probabilities`.

    Args:
        run_or_model: a run directory, or the name of a network with pretrained weights, e.g. "timm:resnet18".
        images: as predict takes them; those that cannot be read are in `.skipped` and have no row.
        out: a file to keep them in, .npz or .parquet. overwrite: replace it where there is one.
        network, device: as load_model takes them; network is of a run alone.

    Raises:
        InterludeError: neither a run nor such a network, a path that does not exist, no image that can be read, or
            a file that is there or cannot be written. `out` is judged before any image is read.
    """
    from interlude_fast.evaluation.embeddings import check_suffix
    from interlude_fast.evaluation.frozen import given_images
    from interlude_fast.evaluation.pretrained import load_network
    from interlude_fast.training.checkpoint import write_atomically

    file = Path(out) if out is not None else None
    if file is not None:
        check_suffix(file)
        if file.exists() and not overwrite:
            raise ConfigError(f"{file} exists; overwrite=True replaces it")
    source = given_images(images)  # before weights are read or downloaded
    found = load_network(run_or_model, network, device).embeddings(source, _progress(quiet))
    if file is not None:
        write_atomically(file, found.encoded(file.suffix))
    return found


def import_checkpoint(
    file: Place,
    out: Place,
    *,
    config: Place | None = None,
    set: Settings = (),
    quiet: bool = False,
    **flags: Unpack[Flags],
) -> Imported:
    """Turn a checkpoint of InterLUDE's, TorchSSL's, USB's, Mixup-LR's or SemiMeta's released code into a run
    directory: its weights, with the dataset and the settings named here. Nothing in the file is executed.

    Args:
        out: folder of the run that is made; it must not exist yet. config, set, flags: as train takes them.

    Raises:
        InterludeError: not such a file, or it does not fit the dataset.
    """
    from interlude_fast.experiment import import_checkpoint as importing

    asked, base = overrides(set, flags), Path(config) if config else None
    return importing.import_checkpoint(Path(file), asked, Path(out), config_file=base, progress=_progress(quiet))


def _several(name: str, values: Any) -> tuple[Any, ...]:
    """Raises ConfigError for one value where several are to be given."""
    if isinstance(values, str) or not isinstance(values, Iterable):
        raise ConfigError(f"{name} wants a list of values, got {values!r}")
    return tuple(values)


def _console(quiet: bool) -> Console:
    return Console(stderr=True, quiet=quiet)


def _progress(quiet: bool) -> Progress:
    return RichProgress(_console(quiet))
