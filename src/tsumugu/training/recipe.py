"""Recipes: one YAML file says a whole run, and the same file is kept beside what came of it.

`Settings` is what every kind of training has; `Recipe` adds what pre-training needs.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Any, ClassVar, Literal, Self, get_origin

import yaml

from tsumugu.core.config import Config, limits, type_hints
from tsumugu.core.errors import ConfigError, did_you_mean
from tsumugu.core.registry import FAMILIES, OBJECTIVES
from tsumugu.corpus.cleaning import Cleaning
from tsumugu.corpus.documents import Division
from tsumugu.training.optimizers import OptimizerConfig
from tsumugu.training.parallel import Parallel
from tsumugu.training.schedules import ScheduleConfig

SUFFIX = ".yaml"
INFORMED = ("bert", "roberta")
"""Families of encoders that may start informed: they learn positions."""


@dataclass(frozen=True, kw_only=True)
class ModelSection(Config):
    """Which network is trained.

    Attributes:
        family: its family, such as gpt2.
        preset: a published shape of that family, such as bert-mini, that the rest is taken from.
        config: hyperparameters by our names; they count more than the preset's. What the tokenizer and the context
            tell (vocab_size, max_positions, special ids) need not be said.
        init: begin from these weights instead of fresh ones: whatever `load_model` takes. It says all hyperparameters.
        start: fresh weights that are random, or informed (bert, roberta): token vectors from counts of neighbours in
            the corpus, heads of the first layer that look at neighbours; see `tsumugu.training.informed`.
    """

    family: str | None = None
    preset: str | None = None
    config: dict[str, Any] = field(default_factory=dict)
    init: str | None = None
    start: Literal["random", "informed"] = "random"

    def check(self) -> None:
        if self.init is not None and self.start == "informed":
            self.refuse("start", "weights that are there need no start", mend="leave one of init and start")
        if self.init is not None and (self.preset is not None or self.config):
            self.refuse("init", "weights that are there say their own hyperparameters", mend="leave preset and config")
        if self.init is None:
            if self.family is None:
                self.refuse("family", "no family is named", mend=f"known: {', '.join(FAMILIES)}")
            FAMILIES.canonical(self.family)
            if self.start == "informed" and FAMILIES.canonical(self.family) not in INFORMED:
                self.refuse(
                    "start", f"there is no informed start for {self.family}", mend=f"known: {', '.join(INFORMED)}"
                )


@dataclass(frozen=True, kw_only=True)
class TokenizerSection(Config):
    """The tokenizer: one that is there, or one trained on the run's own text.

    Attributes:
        source: where `load_tokenizer` finds it; when left out, that of `model.init`, or else one is trained.
        family, kind, vocab_size, language, segment, dictionary, lowercase, nfkc, special_tokens: as `train_tokenizer`
            takes them; the family is the model's when left out.
    """

    source: str | None = None
    family: str | None = None
    kind: str | None = None
    vocab_size: int = limits(8192, low=1)
    language: str = "auto"
    segment: str = "none"
    dictionary: str = "unidic-lite"
    lowercase: bool = False
    nfkc: bool = False
    special_tokens: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class DataSection(Config):
    """The text.

    Attributes:
        corpus: folders that `tsumugu prepare` made; several are mixed.
        weights: the share of each of several corpora; by their size when left out.
        inputs: raw text instead (files, folders, patterns), prepared in the run's folder.
        validation, validation_share: what is held back of raw text, see `prepare`.
        document: what a document is in plain text.
        text_column: of tables.
        cleaning: how raw text is cleaned.
        context: how many positions the model reads; the model's own number when left out, and where it has none 256.
        packing: stream, best-fit or single; the objective's own when left out.
        shuffle: each epoch in an order of its own.
    """

    corpus: tuple[str, ...] = ()
    weights: tuple[float, ...] = limits((), low=0.0)
    inputs: tuple[str, ...] = ()
    validation: tuple[str, ...] = ()
    validation_share: float = limits(0.05, low=0.0, high=0.9)
    document: Division = "auto"
    text_column: str | None = None
    cleaning: Cleaning = field(default_factory=Cleaning)
    context: int | None = limits(None, low=2)
    packing: Literal["stream", "best-fit", "single"] | None = None
    shuffle: bool = True

    def check(self) -> None:
        if self.corpus and self.inputs:
            self.refuse("inputs", "raw text and a prepared corpus exclude each other", mend="give one of them")
        if self.weights and len(self.weights) != len(self.corpus):
            self.refuse("weights", f"{len(self.weights)} weights for {len(self.corpus)} corpora")


@dataclass(frozen=True, kw_only=True)
class TrainSection(Config):
    """How long and how hard.

    Attributes:
        steps, epochs, tokens: how long, said in one of three ways; 1 epoch when nothing is said. The schedule spans it.
        minutes: a budget of time: when it is spent the run saves and stops, and can be resumed.
        batch: rows of a step, over all ranks.
        micro_batch: rows that one rank computes at once; all of its share when left out.
        lr: the peak of the learning rate; the optimiser's own when left out.
        clip: the greatest norm of the gradients; null never clips.
        precision: what is computed in; auto is bf16 where a GPU has it, else fp32. Weights are kept in float32.
        compile: hand the network to torch.compile.
        recompute: keep no activations inside layers, and compute them again for the gradients.
        ema: keep an average of the weights with this decay; it is what is evaluated and saved.
        spike: a loss so many deviations above its average, three steps running, is taken back, as one that is not a
            number always is: the run goes back to its last checkpoint and leaves out the data in between. Null never.
        rollbacks: how often that may happen before the run fails.
        deterministic: let torch use only kernels that give the same bits each time (on a CPU they all do).
        seed: of the first weights, the order of the data and all that is drawn.
    """

    steps: int | None = limits(None, low=1)
    epochs: float | None = limits(None, low=0.0)
    tokens: int | None = limits(None, low=1)
    minutes: float | None = limits(None, low=0.0)
    batch: int = limits(32, low=1)
    micro_batch: int | None = limits(None, low=1)
    lr: float | None = limits(None, low=0.0)
    clip: float | None = limits(1.0, low=0.0)
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    compile: bool = False
    recompute: bool = False
    ema: float | None = limits(None, low=0.0, high=1.0)
    spike: float | None = limits(10.0, low=1.0)
    rollbacks: int = limits(3, low=0)
    deterministic: bool = False
    seed: int = limits(0, low=0)

    def check(self) -> None:
        said = [key for key in ("steps", "epochs", "tokens") if getattr(self, key) is not None]
        if len(said) > 1:
            self.refuse(said[1], f"{' and '.join(said)} say the same in different ways", mend="give one of them")


@dataclass(frozen=True, kw_only=True)
class EvaluationSection(Config):
    """What is measured on the way. Lengths are steps, or as a fraction a share of all steps.

    Attributes:
        every: how often; 0 only at the end.
        rows: rows of held-back text that are read each time, at most; null reads all.
        patience: stop after so many evaluations without a better loss; null never.
        min_delta: by how much better it must be.
        prompts: begin to write after each of these at every evaluation (decoders and encoder-decoders); an empty one
            begins a text.
        new_tokens, temperature: how long samples are, and how daring.
    """

    every: int | float = limits(0.1, low=0)
    rows: int | None = limits(256, low=1)
    patience: int | None = limits(None, low=1)
    min_delta: float = limits(0.0, low=0.0)
    prompts: tuple[str, ...] = ()
    new_tokens: int = limits(64, low=1)
    temperature: float = limits(0.8, low=0.0)

    def check(self) -> None:
        if self.patience is not None and not self.every:
            self.refuse("patience", "nothing is measured before the end", mend="give evaluation.every")


@dataclass(frozen=True, kw_only=True)
class CheckpointSection(Config):
    """What is kept. Lengths are steps, or as a fraction a share of all steps.

    Attributes:
        every: how often the run saves; 0 only at the end.
        keep: how many of the last checkpoints stay.
        best: keep the one with the best evaluation, too.
        milestones: keep every checkpoint whose step is a multiple of this.
    """

    every: int | float = limits(0.1, low=0)
    keep: int = limits(1, low=1)
    best: bool = True
    milestones: int | None = limits(None, low=1)


@dataclass(frozen=True, kw_only=True)
class Settings(Config):
    """What every kind of training has.

    Attributes:
        name: what the run is called.
        tensorboard: also write files for TensorBoard.
    """

    name: str = "run"
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    train: TrainSection = field(default_factory=TrainSection)
    evaluation: EvaluationSection = field(default_factory=EvaluationSection)
    checkpoints: CheckpointSection = field(default_factory=CheckpointSection)
    parallel: Parallel = field(default_factory=Parallel)
    tensorboard: bool = False

    FIXED: ClassVar[tuple[str, ...]] = ("optimizer",)
    """Sections that cannot change once a run has begun."""

    def check(self) -> None:
        if not re.fullmatch(r"[\w.+-][\w.+ -]{0,99}", self.name):
            self.refuse("name", f"{self.name!r} is no name for a folder", mend="letters, digits, - and _")
        if self.optimizer.lr is not None:
            self.refuse("optimizer", "the learning rate is said in train.lr", mend="move it there")

    @property
    def optimization(self) -> OptimizerConfig:
        """The optimiser with its learning rate and all defaults."""
        return self.optimizer.replace(lr=self.train.lr).filled()

    def to_yaml(self) -> str:
        """The whole of it as YAML that `from_yaml` reads back to the same."""
        return yaml.safe_dump(self.to_dict(), sort_keys=False, allow_unicode=True, width=100)

    @classmethod
    def from_yaml(cls, source: str | Path, overrides: Mapping[str, str] | None = None) -> Self:
        """Read a file, or a recipe that comes with this package by its name.

        Args:
            source: a path, or a name that `recipe_names` lists.
            overrides: values by dotted key (`train.lr`), written as in YAML; they count more.

        Raises:
            ConfigError: it is not there, is no YAML, or has an unknown key or a value that is not legal.
        """
        values = read_yaml(find_recipe(source))
        return cls.from_values(values, overrides, where=str(source))

    @classmethod
    def from_values(
        cls, values: Mapping[str, Any], overrides: Mapping[str, str] | None = None, *, where: str = "recipe"
    ) -> Self:
        """From nested plain values and dotted overrides; one value stands for a list of one."""
        merged = with_overrides(values, {key: _value(text, key) for key, text in (overrides or {}).items()})
        return cls.from_dict(_listed(cls, merged), where=where)


@dataclass(frozen=True, kw_only=True)
class Recipe(Settings):
    """A whole run of pre-training.

    Attributes:
        objective: `name` and the options of an objective of `tsumugu.core.registry.OBJECTIVES`.
    """

    model: ModelSection
    tokenizer: TokenizerSection = field(default_factory=TokenizerSection)
    data: DataSection = field(default_factory=DataSection)
    objective: dict[str, Any] = field(default_factory=lambda: {"name": "causal"})

    FIXED: ClassVar[tuple[str, ...]] = (*Settings.FIXED, "model", "tokenizer", "data", "objective")

    def check(self) -> None:
        super().check()
        name = self.objective.get("name")
        if not isinstance(name, str):
            self.refuse("objective", "it has no name", mend=f"known: {', '.join(OBJECTIVES)}")
        OBJECTIVES.canonical(name)


def recipe_names() -> dict[str, str]:
    """The recipes that come with this package, and the first line of what each says of itself."""
    found = {}
    for each in sorted(resources.files("tsumugu.recipes").iterdir(), key=lambda each: each.name):
        if each.name.endswith(SUFFIX):
            first = each.read_text("utf-8").partition("\n")[0]
            found[each.name.removesuffix(SUFFIX)] = first.removeprefix("#").strip()
    return found


def find_recipe(source: str | Path) -> Path:
    """The file of a recipe, given by its path or by the name of one that comes with this package.

    Raises:
        ConfigError: there is none; it names the nearest.
    """
    path = Path(source).expanduser()
    if path.is_file():
        return path
    if str(source) in recipe_names():
        return Path(str(resources.files("tsumugu.recipes") / f"{source}{SUFFIX}"))
    mend = did_you_mean(path.stem, recipe_names())
    raise ConfigError("there is no such recipe", where=str(source), mend=mend)


def read_yaml(path: Path) -> dict[str, Any]:
    """The keys and values of a YAML file.

    Raises:
        ConfigError: it is not YAML, or something else than keys and values.
    """
    try:
        found = yaml.load(path.read_text("utf-8"), _Loader)
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
        raise ConfigError(f"not valid YAML ({error})", where=str(path)) from None
    if not isinstance(found, dict):
        raise ConfigError("expected keys and values", where=str(path))
    return found


def write_recipe(settings: Settings, path: Path) -> None:
    """Write it; the file appears whole."""
    from tsumugu.checkpoints.atomic import new_file

    with new_file(path) as partial:
        partial.write_text(settings.to_yaml(), "utf-8")


class _Loader(yaml.SafeLoader):
    """YAML as people write it: 3e-4 is a number."""


_Loader.yaml_implicit_resolvers = {key: list(each) for key, each in yaml.SafeLoader.yaml_implicit_resolvers.items()}
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?(?:\d[\d_]*)(?:\.\d*)?[eE][-+]?\d+"), list("-+0123456789")
)


def with_overrides(values: Mapping[str, Any], overrides: Mapping[str, Any]) -> dict[str, Any]:
    """A copy of nested values with some replaced, by dotted keys.

    Raises:
        ConfigError: a key leads into a value that is no section.
    """
    merged: dict[str, Any] = _copied(values)
    for key, value in overrides.items():
        _put(merged, key, value)
    return merged


def _value(text: str, key: str) -> Any:
    try:
        return yaml.load(text, _Loader)
    except yaml.YAMLError:
        raise ConfigError(f"{text!r} is no value", where=key) from None


def _copied(value: Any) -> Any:
    return {key: _copied(each) for key, each in value.items()} if isinstance(value, Mapping) else value


def _put(values: dict[str, Any], key: str, value: Any) -> None:
    *path, last = key.split(".")
    for depth, part in enumerate(path):
        inner = values.setdefault(part, {})
        if inner is None:
            inner = values[part] = {}
        if not isinstance(inner, dict):
            raise ConfigError(f"{'.'.join(path[: depth + 1])} is a value, not a section", where=key)
        values = inner
    values[last] = value


def _listed(cls: type[Config], values: Mapping[str, Any]) -> dict[str, Any]:
    """One value where a list is expected becomes a list of one; an empty section is one without values."""
    hints = type_hints(cls)
    done: dict[str, Any] = {}
    for key, value in values.items():
        hint = hints.get(key)
        if isinstance(hint, type) and issubclass(hint, Config):
            done[key] = _listed(hint, value) if isinstance(value, Mapping) else {} if value is None else value
        elif get_origin(hint) is tuple and isinstance(value, str | int | float):
            done[key] = [value]
        else:
            done[key] = value
    return done
