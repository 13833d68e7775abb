"""Typed models of everything that `conf/*/parameters*.yml` may hold.

Kedro instantiates them from the type hints of the nodes; the project's hooks check the whole
file against `Parameters` first, so that a misspelt key stops the run before any work.
"""

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationInfo,
    field_validator,
)

Fraction = Annotated[float, Field(ge=0, lt=1)]
Positive = Annotated[int, Field(gt=0, lt=2**31)]
Seed = Annotated[int, Field(ge=0, lt=2**32)]
LearningRate = Annotated[float, Field(gt=0, le=10)]
Strategy = Annotated[
    Literal["no", "steps", "epoch"],
    BeforeValidator(lambda value: "no" if value is False else value),  # YAML reads no as false
]
OfBitsandbytes = Literal[
    "adamw_8bit",
    "ademamix",
    "ademamix_8bit",
    "lion_32bit",
    "lion_8bit",
    "rmsprop_bnb",
    "rmsprop_bnb_32bit",
    "rmsprop_bnb_8bit",
    "paged_adamw_32bit",
    "paged_adamw_8bit",
    "paged_ademamix_32bit",
    "paged_ademamix_8bit",
    "paged_lion_32bit",
    "paged_lion_8bit",
]
Optimizer = Literal[
    "adamw_torch",
    "adamw_torch_fused",
    "adafactor",
    "adagrad",
    "rmsprop",
    "sgd",
    OfBitsandbytes,
]
Scheduler = Literal[
    "linear",
    "cosine",
    "cosine_with_restarts",
    "polynomial",
    "constant",
    "constant_with_warmup",
    "inverse_sqrt",
]
ComputeDtype = Literal["auto", "float32", "bfloat16"]
AttnImplementation = Literal["auto", "eager", "sdpa"]
Format = Literal["float32", "bfloat16", "NF4 by the libraries", "NF4 here"]
Names = Annotated[
    list[str],
    BeforeValidator(  # on the command line, where `--params` splits at commas, a list is q+v
        lambda names: names.split("+") if isinstance(names, str) and "+" in names else names
    ),
]


def _share_or_whole(steps: float) -> float:
    if steps > 1 and not (steps.is_integer() and steps < 2**31):
        raise ValueError("give a whole number of steps, or a share of all below 1")
    return steps


def _without_nul(path: str) -> str:
    if "\0" in path:
        raise ValueError("no file has a name with a NUL character")
    return path


ShareOrWhole = AfterValidator(_share_or_whole)
Steps = Annotated[float, Field(gt=0), ShareOrWhole]
Place = Annotated[str, Field(min_length=1), AfterValidator(_without_nul)]


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=())


class QuestionColumns(_Section):
    """The columns of a file of questions that are not called like their field."""

    id: str | None = None
    context: str | None = None
    question: str | None = None


class TrainingColumns(QuestionColumns):
    """The columns of a file of training questions that are not called like their field."""

    title: str | None = None
    answers: str | None = None
    answer_start: str | None = None
    is_impossible: str | None = None


class DataParameters(_Section):
    """Input files and what becomes of their articles.

    `unanswerable`: `keep` trains on unanswerable questions so that the model learns to abstain;
    `drop` removes them everywhere, as in SQuAD 1.1; `flag` keeps them in the data, marked by
    `is_impossible` and scored, but does not train on them.
    `on_invalid`: `error` stops at the first record that is not valid; `skip` leaves such records
    out and lists them in the tables of rejected questions.
    """

    train_file: Place
    validation_file: Place
    columns: TrainingColumns
    on_invalid: Literal["error", "skip"]
    unanswerable: Literal["keep", "drop", "flag"]
    validation_fraction: Fraction | None = Field(
        description="None: the validation file is the validation split. A share: the articles of "
        "both files are pooled and this share of them becomes the validation split."
    )
    dev_fraction: Annotated[float, Field(gt=0, lt=1)] = Field(
        description="Share of the training articles held out for the loss and the scores during "
        "training, which choose the best adapter."
    )
    calibration_fraction: Annotated[float, Field(gt=0, lt=1)] = Field(
        description="Share of the other training articles held out to choose the no-answer "
        "threshold on."
    )
    max_train_questions: Positive | None
    max_dev_questions: Positive | None
    max_calibration_questions: Positive | None
    max_validation_questions: Positive | None
    seed: Seed


class ModelParameters(_Section):
    """The base model and its 4-bit quantization (BitsAndBytesConfig).

    `name` is a folder or a hub id. `revision` is the commit or tag of a hub id, or a mapping from
    hub ids to theirs, of which that of `name` remains. `compute_dtype: auto` is bfloat16 where the
    device multiplies it natively, else float32. `skip_modules` names linear layers that stay in it
    (BitsAndBytesConfig's `llm_int8_skip_modules`). `dequantize` computes the same faster, in
    more memory: weights are taken out of 4 bits once, not at every use, and activations are kept;
    `auto` does where the weights are small beside the free memory. `attn_implementation: auto` is
    sdpa on a GPU and eager on a CPU.
    """

    name: Place
    revision: Annotated[  # YAML reads digits as a number
        str | None, BeforeValidator(lambda given: str(given) if type(given) is int else given)
    ]
    load_in_4bit: bool
    quant_type: Literal["nf4", "fp4"]
    double_quant: bool
    skip_modules: Annotated[
        list[str],
        BeforeValidator(lambda names: names.split("+") if isinstance(names, str) else names),
    ]
    dequantize: Literal["auto"] | bool
    compute_dtype: ComputeDtype
    attn_implementation: AttnImplementation

    @field_validator("revision", mode="before")
    @classmethod
    def _revision_of_name(cls, revision: Any, info: ValidationInfo) -> Any:
        return revision.get(info.data.get("name")) if isinstance(revision, Mapping) else revision


class PromptParameters(_Section):
    """The one prompt of training, evaluation and inference."""

    template: str
    abstention: Annotated[str, Field(min_length=1)]

    @field_validator("template")
    @classmethod
    def _has_both_fields(cls, template: str) -> str:
        for field in ("{question}", "{context}"):
            if template.count(field) != 1:
                raise ValueError(f"it must contain {field} exactly once")
        return template


class TokenizationParameters(_Section):
    """Lengths in tokens; `doc_stride` is the overlap of neighbouring context windows."""

    max_source_length: Positive
    max_target_length: Positive
    doc_stride: Annotated[int, Field(ge=0)]

    @field_validator("doc_stride")
    @classmethod
    def _windows_advance(cls, doc_stride: int, info: ValidationInfo) -> int:
        longest = info.data.get("max_source_length")
        if longest is not None and doc_stride >= longest:
            raise ValueError(
                f"windows of max_source_length {longest} would not advance; lower doc_stride"
            )
        return doc_stride


class LoraParameters(_Section):
    """peft.LoraConfig; `target_modules` is `all-linear` or a list of module names."""

    target_modules: Literal["all-linear"] | Annotated[Names, Field(min_length=1)]
    r: Annotated[int, Field(ge=1, le=1024)]
    alpha: Annotated[int, Field(ge=1, le=65536)]
    dropout: Fraction
    use_rslora: bool
    use_dora: bool


class TrainingParameters(_Section):
    """transformers.Seq2SeqTrainingArguments under their own names, evaluation and early stopping.

    Evaluation is of the loss on the dev questions, and of EM and F1 on `eval_questions` of them,
    answered as in the report.
    `load_best_model_at_end` keeps the adapter of the best F1, and `early_stopping_patience`
    evaluations without an F1 that is higher by `early_stopping_threshold` points end the training.
    `resume: auto` goes on from the last checkpoint of an interrupted training with the same
    parameters, data, base and library versions; `never` starts anew.
    `optim` and `lr_scheduler_type` are those that need no other package, option or evaluation.
    `cuda_graphs: auto` captures steps as CUDA graphs where that is possible (see `cuda_graphs`).
    """

    output_dir: Place
    logging_dir: Place
    num_train_epochs: Annotated[float, Field(gt=0, le=1_000_000)]
    max_steps: Literal[-1] | Positive
    per_device_train_batch_size: Positive
    per_device_eval_batch_size: Positive
    gradient_accumulation_steps: Positive
    auto_find_batch_size: bool
    learning_rate: LearningRate
    lr_scheduler_type: Scheduler
    warmup_steps: Annotated[float, Field(ge=0), ShareOrWhole]
    weight_decay: Annotated[float, Field(ge=0, le=1)]
    max_grad_norm: Annotated[float, Field(ge=0, le=1_000_000)]
    optim: Optimizer
    gradient_checkpointing: bool
    cuda_graphs: Literal["auto"] | bool
    train_sampling_strategy: Literal["group_by_length", "random", "sequential"]
    logging_steps: Positive
    eval_strategy: Strategy
    eval_steps: Steps
    eval_questions: Positive
    load_best_model_at_end: bool
    early_stopping_patience: Positive | None
    early_stopping_threshold: Annotated[float, Field(ge=0, le=100)]
    save_strategy: Strategy
    save_steps: Steps
    save_total_limit: Positive
    resume: Literal["auto", "never"]
    seed: Seed

    @field_validator("early_stopping_patience")
    @classmethod
    def _has_evaluations(cls, patience: int | None, info: ValidationInfo) -> int | None:
        if patience and info.data.get("eval_strategy") == "no":
            raise ValueError("it needs evaluations; set training.eval_strategy to steps or epoch")
        return patience


class DistributedParameters(_Section):
    """How many processes `kedro run` starts on this machine, one to a GPU (see `processes`).

    `timeout_minutes` is how long they wait for one another, such as for the first one to prepare
    the data. Under `torchrun`, which starts the processes itself, `num_processes` means nothing.
    `fsdp` spreads the base's weights over the processes (see `sharding`).
    """

    num_processes: Positive
    timeout_minutes: Annotated[float, Field(gt=0, le=1_000_000)]
    fsdp: bool


class GenerationParameters(_Section):
    """Greedy decoding, the same for the base and the fine-tuned model.

    `batch_tokens` is of input tokens at a time, padding included.
    """

    batch_tokens: Positive
    max_new_tokens: Annotated[int, Field(ge=1, le=65536)]


class InferenceParameters(_Section):
    """Answers to new questions (see `answering.QuestionAnswerer`); `chunk_size` in rows."""

    questions_file: Place
    columns: QuestionColumns
    chunk_size: Positive
    no_answer_threshold: Annotated[float, Field(ge=0, le=1)] | None


class ExampleParameters(_Section):
    """A question that the web page offers."""

    context: str
    question: str


class ServingParameters(_Section):
    """Where the web page and its API listen, and what they accept (see `serving`)."""

    host: Annotated[str, Field(min_length=1)]
    port: Annotated[int, Field(ge=1, le=65535)]
    max_context_characters: Positive
    max_question_characters: Positive
    concurrency: Annotated[int, Field(ge=1, le=40)] = Field(
        description="Questions answered at a time, those that come together in one batch; at most "
        "the 40 threads that gradio has."
    )
    max_queue_size: Positive = Field(description="Questions that wait; more are refused.")
    examples: list[ExampleParameters]


class ReportingParameters(_Section):
    """Before/after answers to sample, paired bootstrap intervals, formats to measure.

    `memory_formats` are those of the base in which a training step is taken to measure its memory.
    """

    sample_answers: Positive
    bootstrap_resamples: Annotated[int, Field(ge=1, le=1_000_000)]
    confidence: Annotated[float, Field(gt=0, lt=1)]
    memory_formats: list[Format]
    seed: Seed


class CompareParameters(_Section):
    """Two saved versions of the reporting pipeline, named by their time stamps."""

    first: str | None
    second: str | None


class CorpusParameters(_Section):
    """Size and seed of a generated corpus (see `starter_corpus.generate_corpus`)."""

    seed: Seed
    n_articles: Positive
    paragraphs_per_article: tuple[Positive, Positive]
    questions_per_paragraph: tuple[Positive, Positive]
    impossible_fraction: Fraction


class ArchitectureParameters(_Section):
    """transformers.T5Config fields of the starter base model."""

    vocab_size: Positive
    d_model: Positive
    d_kv: Positive
    d_ff: Positive
    num_layers: Positive
    num_decoder_layers: Positive
    num_heads: Positive


class LookupParameters(_Section):
    """One step of the lookup curriculum (see `pretraining.lookup_example`)."""

    examples: Positive
    names: Positive
    relations: Positive
    max_pieces: Positive
    max_name_pieces: Positive


class PretrainingParameters(_Section):
    """Lookups from easy to hard, then extractive QA and span corruption on the corpus."""

    prompts: list[str]
    lookups: list[LookupParameters]
    cropped_examples: Positive
    whole_examples: Positive
    renamed_fraction: Fraction
    span_corruption_fraction: Fraction
    noise_density: Fraction
    mean_span_length: Annotated[float, Field(ge=1, le=1000)]
    output_dir: Place
    per_device_train_batch_size: Positive
    learning_rate: LearningRate
    embedding_learning_rate: LearningRate
    warmup_steps: Annotated[float, Field(ge=0, lt=2**31)]
    seed: Seed


class StarterParameters(_Section):
    """The embedded corpus and base model."""

    train_fraction: Fraction
    corpus: CorpusParameters
    pretraining_corpus: CorpusParameters
    architecture: ArchitectureParameters
    pretraining: PretrainingParameters


class Parameters(_Section):
    """All sections of the parameters files."""

    data: DataParameters
    model: ModelParameters
    prompt: PromptParameters
    tokenization: TokenizationParameters
    lora: LoraParameters
    training: TrainingParameters
    distributed: DistributedParameters
    generation: GenerationParameters
    inference: InferenceParameters
    serving: ServingParameters
    reporting: ReportingParameters
    compare: CompareParameters
    starter: StarterParameters
