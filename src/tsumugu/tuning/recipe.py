"""A recipe of fine-tuning: the whole of a run as one file."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, Self

from tsumugu.adapters.config import AdapterConfig, LoraConfig, PrefixTuningConfig, PromptTuningConfig
from tsumugu.core.config import Config, limits
from tsumugu.training.recipe import EvaluationSection, Settings
from tsumugu.training.schedules import ScheduleConfig

RATES = {"full": 5e-5, "head": 1e-3, "lora": 5e-4, "prompt": 3e-2, "prefix": 1e-2, "setfit": 5e-5}
"""The peak of the learning rate where nothing is said, for a network of `WIDTH`."""
WIDTH = 768
"""What `RATES` are for. All weights of a narrower network learn faster, as 1 / width.

Source: Devlin et al. 2019, BERT, appendix A.3; Hu et al. 2021, LoRA, table 9; Yang et al. 2022, Tensor Programs V,
table 3 (Adam, hidden weights).
"""

EPOCHS = {"full": 3.0, "head": 3.0, "lora": 3.0, "prompt": 3.0, "prefix": 3.0, "setfit": 20.0}
"""How often everything is read where nothing is said."""


@dataclass(frozen=True, kw_only=True)
class ModelSection(Config):
    """Which model is tuned.

    Attributes:
        source: whatever `load_model` takes: a path, a name, a run's checkpoint.
        config: hyperparameters by our names that are changed, such as the dropout.
        method: what is trained: full (all weights), head (the task's own layers alone, a linear probe), lora (few
            parameters beside each matrix, and the head), of a decoder what stands before every text (prompt or
            prefix), or setfit (from a few examples: vectors of texts, and a logistic regression on them).
        pooling: what the head of a classifier reads: the first token, or the mean of all tokens, by one layer more
            (bert and roberta, with the methods full and head).
        lora, prompt, prefix: what is added with that method.
    """

    source: str
    config: dict[str, Any] = field(default_factory=dict)
    method: Literal["full", "head", "lora", "prompt", "prefix", "setfit"] = "full"
    pooling: Literal["first", "mean"] = "first"
    lora: LoraConfig = field(default_factory=LoraConfig)
    prompt: PromptTuningConfig = field(default_factory=PromptTuningConfig)
    prefix: PrefixTuningConfig = field(default_factory=PrefixTuningConfig)

    def check(self) -> None:
        """The mean is read by a layer of the network's own."""
        if self.pooling == "mean" and self.method not in ("full", "head"):
            self.refuse("pooling", f"method {self.method} keeps the network's layers as they are", mend="leave it out")

    @property
    def adapter(self) -> AdapterConfig | None:
        """What is added to the network, if anything is."""
        return getattr(self, self.method) if self.method in ("lora", "prompt", "prefix") else None


@dataclass(frozen=True, kw_only=True)
class DataSection(Config):
    """The labelled data.

    Attributes:
        source: a folder of splits, a file, or hf:NAME; see `load_examples`.
        validation: a file of examples that choose the best checkpoint; the folder's own split, or else a share.
        validation_share: of the training examples, drawn for validation where nothing else is there. With 0 nothing is
            held back: the last weights are the model, and the training examples say how they do.
        test: a file that is evaluated at the end; the folder's own split when left out.
        columns, format, labels: as `load_examples` takes them.
        skip: pass over rows that cannot be used.
        limit: so many training examples at most, drawn by the seed.
        per_label: so many of each label at most.
        max_length: longer texts are cut, in tokens (the longest that the model reads, at most 512, when left out).
        stride: tokens that the pieces of a long text share, for tags and answers.
        by_length: put texts of like length into one batch, so that little is spent on padding.
        micro_tokens: so many tokens, padding included, are computed at once at most: a step of long texts is cut into
            more micro-batches than one of short ones, which changes nothing else. Not for what is learnt by comparing
            all texts of a step.
        more: a file of further examples to learn, such as self-training writes; none of them is held back.
        unlabelled: texts without labels, as `tsumugu prepare` reads them, each line of a plain file one text. For
            `self_training`, `loss.consistency` or `loss.teacher`.
        unlabelled_batch: so many of them in a step, beside the labelled ones, where they are learnt by consistency.
        folds: cut the training examples into so many parts, each with its share of every label (cross-validation).
        fold: the part, from 1, that is the test split; the others are learnt.
    """

    source: str
    validation: str | None = None
    validation_share: float = limits(0.1, low=0.0, high=0.9)
    test: str | None = None
    columns: dict[str, str] = field(default_factory=dict)
    format: str | None = None
    labels: tuple[str, ...] = ()
    skip: bool = False
    limit: int | None = limits(None, low=1)
    per_label: int | None = limits(None, low=1)
    max_length: int | None = limits(None, low=4)
    stride: int = limits(64, low=0)
    by_length: bool = True
    micro_tokens: int | None = limits(None, low=1)
    more: str | None = None
    unlabelled: tuple[str, ...] = ()
    unlabelled_batch: int = limits(64, low=1)
    folds: int | None = limits(None, low=2)
    fold: int | None = limits(None, low=1)

    def check(self) -> None:
        if (self.fold is None) != (self.folds is None) or (self.fold or 0) > (self.folds or 0):
            self.refuse(
                "fold", "which of how many folds is not said", mend="give both, or repeat.folds for all in turn"
            )
        if self.fold is not None and self.test is not None:
            self.refuse("test", "a fold is tested already", mend="leave one of them out")


@dataclass(frozen=True, kw_only=True)
class RepeatSection(Config):
    """The same run several times, each in a folder of its own.

    Attributes:
        seeds: so many times, each with a seed of its own: `train.seed` and those after it.
        folds: cross-validation: each example of training is in the test split once.
    """

    seeds: int | None = limits(None, low=2)
    folds: int | None = limits(None, low=2)

    @property
    def asked(self) -> bool:
        """Whether there is more than one run."""
        return self.seeds is not None or self.folds is not None

    def check(self) -> None:
        if self.seeds is not None and self.folds is not None:
            self.refuse("folds", "there are seeds already", mend="give one of them")


@dataclass(frozen=True, kw_only=True)
class SelfTraining(Config):
    """Learning from texts that the model labels itself (`data.unlabelled`).

    Attributes:
        rounds: so many times, after the first model that learns from the labelled examples alone; 0 never.
        confidence: only texts with a label at least as probable are learnt.
    """

    rounds: int = limits(0, low=0)
    confidence: float = limits(0.9, low=0.0, high=1.0)


@dataclass(frozen=True, kw_only=True)
class LossSection(Config):
    """What is asked of the model.

    Attributes:
        label_smoothing: the share of each target that is spread over all labels.
        class_weights: balanced weighs each label by how rare it is; or a weight by label.
        similarity: how a bi-encoder learns from scores: cosent (by their order) or cosine (by value).
        consistency: the weight of how far the model is from itself on `data.unlabelled`, where some tokens are hidden
            from it and dropout is on; 0 does not ask for it.
        ramp: the share of all steps in which that weight grows to its height.
        teacher: a model for the same labels; its probabilities are learnt, too (distillation).
        teacher_share: their share of the loss.
        temperature: that both are softened by.
        beta: how strongly a preference is held to the start weights (DPO).

    Source: smoothing: Szegedy et al. 2016, section 7; distillation: Hinton et al. 2015, section 2; beta: Rafailov
    et al. 2023, section 4.
    """

    label_smoothing: float = limits(0.0, low=0.0, high=1.0)
    class_weights: Literal["none", "balanced"] | dict[str, float] = "none"
    similarity: Literal["cosent", "cosine"] = "cosent"
    consistency: float = limits(0.0, low=0.0)
    ramp: float = limits(0.3, low=0.0, high=1.0)
    teacher: str | None = None
    teacher_share: float = limits(0.5, low=0.0, high=1.0)
    temperature: float = limits(2.0, low=0.01)
    beta: float = limits(0.1, low=0.0)


@dataclass(frozen=True, kw_only=True)
class TuningEvaluation(EvaluationSection):
    """As in pre-training; examples count, not rows of text.

    Attributes:
        every: how often; 0 only at the end.
        rows: validation examples that are read each time, at most, the same each time, drawn by the seed; null reads
            all.
    """

    every: int | float = limits(0.2, low=0)
    rows: int | None = limits(500, low=1)


@dataclass(frozen=True, kw_only=True)
class TuningSchedule(ScheduleConfig):
    """As in pre-training, with the usual values of fine-tuning where nothing is said: linear, after a tenth of warm-up.

    Source: Devlin et al. 2019, BERT, appendix A.2.
    """

    name: Literal["cosine", "linear", "constant", "wsd", "inverse-sqrt"] = "linear"
    warmup: int | float = limits(0.1, low=0)


@dataclass(frozen=True, kw_only=True)
class Tuning(Settings):
    """A whole run of fine-tuning.

    Attributes:
        task: what is learnt: a task's name, see `tsumugu.tuning.objectives`.
        self_training: whether it goes on with texts that the model labelled itself.
        repeat: how often all of it is done.
    """

    task: str
    model: ModelSection
    data: DataSection
    loss: LossSection = field(default_factory=LossSection)
    self_training: SelfTraining = field(default_factory=SelfTraining)
    repeat: RepeatSection = field(default_factory=RepeatSection)
    evaluation: TuningEvaluation = field(default_factory=TuningEvaluation)
    schedule: TuningSchedule = field(default_factory=TuningSchedule)

    def check(self) -> None:
        super().check()
        for key, asked in (("loss", self.loss.consistency), ("self_training", self.self_training.rounds)):
            if asked and not self.data.unlabelled:
                self.refuse(key, "there are no texts without labels to learn from", mend="name data.unlabelled")

    FIXED: ClassVar[tuple[str, ...]] = (*Settings.FIXED, "task", "model", "data", "loss")

    def settled(self, width: int) -> Self:
        """The same with the usual values of AdamW where nothing is said, for a network of `width`."""
        if self.optimizer.name != "adamw":
            return self
        usual = {"weight_decay": 0.01, "betas": (0.9, 0.999)}
        usual = {key: each for key, each in usual.items() if getattr(self.optimizer, key) is None}
        method = self.model.method
        lr = (
            RATES[method] * (WIDTH / width if method in ("full", "setfit") else 1.0)
            if self.train.lr is None
            else self.train.lr
        )
        return self.replace(optimizer=self.optimizer.replace(**usual), train=self.train.replace(lr=lr))
