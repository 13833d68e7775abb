"""Typed models of everything that `conf/*/parameters*.yml` may hold.

Kedro instantiates them from the type hints of the nodes. The project's hooks check all files
against `Parameters` first, so a misspelt key stops the run before any work. The text below a field
is its description on the documentation's page of parameters.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationInfo,
    field_validator,
    model_validator,
)

Fraction = Annotated[float, Field(ge=0, lt=1)]
Positive = Annotated[int, Field(gt=0, lt=2**31)]
Seed = Annotated[int, Field(ge=0, lt=2**32)]
LearningRate = Annotated[float, Field(gt=0, le=10)]
Weight = Annotated[float, Field(ge=0, le=1_000_000)]
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
AttnImplementation = Literal["auto", "eager", "sdpa", "triton"]
Format = Literal["float32", "bfloat16", "NF4 by the libraries", "NF4 here"]
# On the command line, where `--params` splits at commas, a list is q+v.
Names = Annotated[
    list[str],
    BeforeValidator(lambda names: names.split("+") if isinstance(names, str) else names),
]


def _share_or_whole(steps: float) -> float:
    if steps > 1 and not (steps.is_integer() and steps < 2**31):
        raise ValueError("give a whole number of steps, or a share of all below 1")
    return steps


def _require_slots(template: str, *slots: str) -> str:
    for slot in slots:
        if template.count(f"{{{slot}}}") != 1:
            raise ValueError(f"it must contain {{{slot}}} exactly once")
    return template


def _without_nul(path: str) -> str:
    if "\0" in path:
        raise ValueError("no file has a name with a NUL character")
    return path


ShareOrWhole = AfterValidator(_share_or_whole)
Steps = Annotated[float, Field(gt=0), ShareOrWhole]
Place = Annotated[str, Field(min_length=1), AfterValidator(_without_nul)]


@dataclass(frozen=True)
class ReadAs:
    """Marks a parameter that names the file of a dataset in the catalog."""

    dataset: str


class _Section(BaseModel):
    model_config = ConfigDict(
        extra="forbid", frozen=True, protected_namespaces=(), use_attribute_docstrings=True
    )


class QuestionColumns(_Section):
    """The columns of a question file whose names differ from their fields."""

    id: str | None = None
    """The name of the column that holds the question's id, where it is not `id`."""
    context: str | None = None
    """The name of the column that holds the context, where it is not `context`."""
    question: str | None = None
    """The name of the column that holds the question, where it is not `question`."""


class TrainingColumns(QuestionColumns):
    """The columns of a training file whose names differ from their fields."""

    title: str | None = None
    """The name of the column that holds the article's title, where it is not `title`."""
    answers: str | None = None
    """The name of the column that holds the answers, where it is not `answers`."""
    answer_start: str | None = None
    """The name of the column that holds the answers' first characters, where it is not
    `answer_start`."""
    is_impossible: str | None = None
    """The name of the column that holds whether the question is unanswerable, where it is not
    `is_impossible`."""


class DataParameters(_Section):
    """The input files, and how their articles are split."""

    train_file: Annotated[Place, ReadAs("raw_train")]
    """The training questions: a file, a folder, a glob or an `hf://` URL."""
    validation_file: Annotated[Place, ReadAs("raw_validation")]
    """The questions that score the base and the fine-tuned model."""
    columns: TrainingColumns
    """Names of the columns in files of rows, where they differ from the fields."""
    on_invalid: Literal["error", "skip"]
    """`error` stops at the first invalid record. `skip` leaves invalid records out and lists them
    in the tables of rejected questions."""
    unanswerable: Literal["keep", "drop", "flag"]
    """`keep` trains on unanswerable questions, so the model learns to abstain. `drop` removes them
    everywhere, as in SQuAD 1.1. `flag` scores them but does not train on them."""
    unanswerable_share: Annotated[float, Field(gt=0, lt=1)] | None
    """Under `keep`, random questions of the more frequent kind are left out of train, dev and
    calibration until this share is unanswerable. A split with questions of one kind stays whole.
    `null` leaves none out."""
    validation_fraction: Fraction | None
    """`null` takes the validation file as the validation split. A share pools the articles of both
    files and makes that share of them the validation split."""
    dev_fraction: Annotated[float, Field(gt=0, lt=1)]
    """The share of the training articles held out for the loss and the scores during training,
    which choose the best adapter."""
    calibration_fraction: Annotated[float, Field(gt=0, lt=1)]
    """The share of the other training articles held out to choose the no-answer threshold."""
    max_train_questions: Positive | None
    """At most this many training questions; `null` takes all."""
    max_dev_questions: Positive | None
    """At most this many dev questions; `null` takes all."""
    max_calibration_questions: Positive | None
    """At most this many calibration questions; `null` takes all."""
    max_validation_questions: Positive | None
    """At most this many validation questions; `null` takes all."""
    seed: Seed
    """Seeds the choice of articles and questions."""


class ModelParameters(_Section):
    """The base model and its 4-bit quantization (`BitsAndBytesConfig`)."""

    name: Place
    """The folder of a saved model, or a hub id."""
    revision: Annotated[  # YAML reads digits as a number
        str | None, BeforeValidator(lambda given: str(given) if type(given) is int else given)
    ]
    """The commit or tag of a hub id, or a mapping from hub ids to theirs. A folder has none."""
    load_in_4bit: bool
    """`false` keeps the base in the compute dtype."""
    quant_type: Literal["nf4", "fp4"]
    """The 4-bit data type."""
    double_quant: bool
    """Quantizes the quantization constants, too."""
    skip_modules: Names
    """Linear layers that stay in the compute dtype (`llm_int8_skip_modules`). `[]` quantizes all of
    them."""
    dequantize: Literal["auto"] | bool
    """`true` takes the weights out of 4 bits once and keeps activations: the same results, faster,
    in more memory. `auto` does so where the weights are small beside the free memory."""
    compute_dtype: ComputeDtype
    """`auto` is bfloat16 where the device multiplies it natively, else float32."""
    attn_implementation: AttnImplementation
    """`auto` is `eager` on a CPU; on a GPU `triton`, or `sdpa` where Triton does not work. With
    `triton` the gated gelu of the feed-forward layers is a kernel of Triton's, too."""

    @field_validator("revision", mode="before")
    @classmethod
    def _revision_of_name(cls, revision: Any, info: ValidationInfo) -> Any:
        return revision.get(info.data.get("name")) if isinstance(revision, Mapping) else revision


class PromptParameters(_Section):
    """The one prompt of training, evaluation and inference."""

    template: str
    """The model's input; it contains `{question}` and `{context}` once each."""
    abstention: Annotated[str, Field(min_length=1)]
    """What the model says when the context does not answer the question."""

    @field_validator("template")
    @classmethod
    def _has_both_fields(cls, template: str) -> str:
        return _require_slots(template, "question", "context")


class TokenizationParameters(_Section):
    """Lengths in tokens."""

    max_source_length: Positive
    """The longest input. A context that does not fit beside its question is read in windows."""
    max_target_length: Positive
    """The longest answer in training; the rest is cut."""
    doc_stride: Annotated[int, Field(ge=0)]
    """The overlap of neighbouring windows of a context."""

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
    """The adapter (`peft.LoraConfig`)."""

    target_modules: Literal["all-linear"] | Annotated[Names, Field(min_length=1)]
    """`all-linear`, or a list of module names such as `[q, v]`."""
    r: Annotated[int, Field(ge=1, le=1024)]
    """The rank of the adapter's matrices."""
    alpha: Annotated[int, Field(ge=1, le=65536)]
    """The adapter's output is scaled by `alpha / r`."""
    dropout: Fraction
    """Dropout of the adapter's input."""
    use_rslora: bool
    """Rank-stabilized LoRA: scales by `alpha / sqrt(r)`."""
    use_dora: bool
    """DoRA: learns the magnitude of each weight column, too."""


class TrainingParameters(_Section):
    """`transformers.Seq2SeqTrainingArguments` by their names, evaluation and early stopping."""

    output_dir: Place
    """The folder for checkpoints."""
    logging_dir: Place
    """The folder for TensorBoard's logs."""
    num_train_epochs: Annotated[float, Field(gt=0, le=1_000_000)]
    """Passes over the training questions."""
    max_steps: Literal[-1] | Positive
    """Stops after this many steps; -1 trains for `num_train_epochs`."""
    per_device_train_batch_size: Positive
    """Windows in a training batch of each process."""
    per_device_eval_batch_size: Positive
    """Windows in a batch of the dev loss."""
    gradient_accumulation_steps: Positive
    """Batches whose gradients make one step."""
    auto_find_batch_size: Literal["auto"] | bool
    """`true` starts again with a smaller batch, and as much more accumulation, when memory runs
    out; several processes cannot. `auto` is `true` in one process and `false` in several."""
    learning_rate: LearningRate
    """The highest learning rate."""
    lr_scheduler_type: Scheduler
    """The schedule of the learning rate."""
    warmup_steps: Annotated[float, Field(ge=0), ShareOrWhole]
    """Steps until the highest learning rate; below 1, a share of all steps."""
    weight_decay: Annotated[float, Field(ge=0, le=1)]
    """The optimizer's weight decay."""
    max_grad_norm: Annotated[float, Field(ge=0, le=1_000_000)]
    """Gradients are scaled down to this norm; 0 leaves them as they are."""
    optim: Optimizer
    """The optimizer: one that needs no other package or option."""
    gradient_checkpointing: bool
    """Recomputes activations in the backward pass, which takes less memory and more time."""
    cuda_graphs: Literal["auto"] | bool
    """Launches all kernels of a step at once. `auto` does so where it is possible."""
    train_sampling_strategy: Literal["group_by_length", "random", "sequential"]
    """The order of the training windows; `group_by_length` makes batches of similar length."""
    logging_steps: Positive
    """Steps between two logs of the loss."""
    report_to: Literal["tensorboard", "wandb", "mlflow", "none"]
    """The tracker that gets the log. `tensorboard` writes into `logging_dir`; `wandb` and `mlflow`
    must be installed and are set up by their own environment variables."""
    eval_strategy: Strategy
    """When to evaluate on the dev articles: never, every `eval_steps`, or after each epoch."""
    eval_steps: Steps
    """Steps between two evaluations; below 1, a share of all steps."""
    eval_questions: Positive
    """How many dev questions each evaluation answers for EM and F1."""
    load_best_model_at_end: bool
    """Keeps the adapter with the best F1 of these evaluations, not the last one."""
    early_stopping_patience: Positive | None
    """Training stops after so many evaluations without a better F1; `null` trains to the end."""
    early_stopping_threshold: Annotated[float, Field(ge=0, le=100)]
    """An F1 counts as better if it is higher by this many points."""
    save_strategy: Strategy
    """When to save a checkpoint."""
    save_steps: Steps
    """Steps between two checkpoints; below 1, a share of all steps."""
    save_total_limit: Positive
    """How many checkpoints of a training stay on disk."""
    resume: Literal["auto", "never"]
    """`auto` resumes from the last checkpoint of an interrupted training with the same parameters,
    data, base and library versions. `never` starts from the first step."""
    seed: Seed
    """Seeds the adapter's weights, dropout and the order of the windows."""

    @field_validator("early_stopping_patience")
    @classmethod
    def _has_evaluations(cls, patience: int | None, info: ValidationInfo) -> int | None:
        if patience and info.data.get("eval_strategy") == "no":
            raise ValueError("it needs evaluations; set training.eval_strategy to steps or epoch")
        return patience


class DistributedParameters(_Section):
    """Training and answering in several processes."""

    num_processes: Positive
    """How many processes `kedro run` starts on this machine, one for each GPU. `torchrun`, which
    starts the processes itself, ignores it."""
    timeout_minutes: Annotated[float, Field(gt=0, le=1_000_000)]
    """How long processes wait for each other, for example while the first one prepares the data."""
    fsdp: bool
    """Spreads the base's weights over the processes, for a base too large for one GPU."""


class GenerationParameters(_Section):
    """Greedy decoding, the same for the base and the fine-tuned model."""

    batch_tokens: Literal["auto"] | Positive
    """Input tokens in a batch of questions to answer, padding included. `auto` is 8,192 on a CPU
    and as many as fit in the free memory of a GPU, at most 262,144. A GPU with enough memory
    for two batches answers two at a time. A batch that does not fit beside the other is answered
    alone, and in halves if need be."""
    max_new_tokens: Annotated[int, Field(ge=1, le=65536)]
    """The longest answer in tokens."""


class InferenceParameters(_Section):
    """Answers to a file of new questions."""

    questions_file: Annotated[Place, ReadAs("new_questions")]
    """The questions to answer: a file, a folder, a glob or an `hf://` URL."""
    columns: QuestionColumns
    """Names of the file's columns, where they differ from the fields."""
    chunk_size: Positive
    """Rows read, answered and written at a time."""
    no_answer_threshold: Annotated[float, Field(ge=0, le=1)] | None
    """The model abstains above this no-answer probability; `null`: when its own output abstains."""


class ExampleParameters(_Section):
    """A question that the web page offers."""

    context: str
    """The example's context."""
    question: str
    """The example's question."""


class ServingParameters(_Section):
    """Where the web page and its API listen, and what they accept."""

    host: Annotated[str, Field(min_length=1)]
    """The address to listen on. 127.0.0.1 is this machine only; others need a password."""
    port: Annotated[int, Field(ge=1, le=65535)]
    """The port to listen on."""
    open: bool
    """Lets everyone who reaches the port ask without a password."""
    max_context_characters: Positive
    """The longest context that a request may send."""
    max_question_characters: Positive
    """The longest question that a request may send."""
    concurrency: Annotated[int, Field(ge=1, le=40)]
    """Questions answered at a time; those that arrive together share a batch."""
    max_queue_size: Positive
    """Questions that may wait; the server refuses more. Also the most in one request."""
    examples: list[ExampleParameters]
    """Examples offered on the page."""


class ReportingParameters(_Section):
    """Sample answers, bootstrap intervals and the memory table."""

    sample_answers: Positive
    """Questions in the table of sample answers."""
    bootstrap_resamples: Annotated[int, Field(ge=1, le=1_000_000)]
    """Resamples of the paired bootstrap."""
    confidence: Annotated[float, Field(gt=0, lt=1)]
    """The confidence level of the intervals."""
    memory_formats: list[Format]
    """Formats of the base in which a training step is taken to measure its memory; `[]` measures
    none."""
    seed: Seed
    """Seeds the bootstrap and the choice of samples."""


class CompareParameters(_Section):
    """Two saved versions of the reporting pipeline."""

    first: str | None
    """The version on the left."""
    second: str | None
    """The version on the right."""


class ArchitectureParameters(_Section):
    """`transformers.T5Config` of the base model."""

    vocab_size: Positive
    """Pieces of the vocabulary."""
    d_model: Positive
    """The width of the layers."""
    d_kv: Positive
    """The width of an attention head."""
    d_ff: Positive
    """The width of the feed-forward layers."""
    num_layers: Positive
    """Encoder layers."""
    num_decoder_layers: Positive
    """Decoder layers."""
    num_heads: Positive
    """Attention heads."""


class PretrainPromptParameters(PromptParameters):
    """A prompt of pretraining, and how it wants the model to abstain."""


class ShapeParameters(_Section):
    """A batch's rows in each process, and the lengths in tokens that they are padded to."""

    rows: Positive
    """Rows of a batch in each process."""
    source: Annotated[int, Field(ge=8, le=65536)]
    """Tokens of an input, `</s>` included."""
    target: Annotated[int, Field(ge=3, le=65536)]
    """Tokens of a target, `</s>` included."""


class PretrainBatchesParameters(_Section):
    """Shapes of the three kinds of batches, and how span corruption removes tokens."""

    denoising: ShapeParameters
    """The shape of batches with span corruption."""
    short: ShapeParameters
    """The shape of batches with short questions and contexts."""
    long: ShapeParameters
    """The shape of batches with long ones; it bounds every input and target."""
    noise_density: Annotated[float, Field(gt=0, lt=1)]
    """The share of tokens that span corruption removes."""
    mean_span_length: Annotated[float, Field(ge=1, le=1000)]
    """The mean length of a removed span in tokens."""


class MixtureParameters(_Section):
    """Shares of the kinds of batches and rows in a stage."""

    denoising: Fraction
    """The share of batches with span corruption."""
    cloze: Weight
    """The weight of questions made from a text's sentences."""
    answerable: Weight
    """The weight of answerable questions."""
    unanswerable: Weight
    """The weight of unanswerable questions."""
    asking: Weight
    """The weight of rows that ask for a question."""
    generated: Weight
    """The weight of questions that the reader generated."""
    extra: Weight = 0.0
    """The weight of the answerable questions of `question_folder`; above 0, its unanswerable ones
    join the others."""
    edited: Fraction
    """The share of answerable questions that are made unanswerable."""
    substituted: Fraction
    """The share of the other answerable questions that get another answer, in the context, too."""

    @model_validator(mode="after")
    def _has_rows(self) -> Self:
        weights = (self.cloze, self.answerable, self.unanswerable, self.asking, self.generated)
        if not any((*weights, self.extra)):
            raise ValueError("one of the weights cloze … extra must be above 0")
        return self


class StageParameters(_Section):
    """Steps with one mixture."""

    steps: Positive
    """Steps of the stage."""
    mixture: MixtureParameters
    """What the batches hold."""


class PretrainOptimizerParameters(_Section):
    """Largest learning rates: Muon's for the layers' matrices, AdamW's for the rest."""

    matrix_lr: LearningRate
    """Muon's learning rate, for the layers' matrices."""
    embedding_lr: LearningRate
    """AdamW's learning rate for the embeddings."""
    head_lr: LearningRate
    """AdamW's learning rate for the head."""
    other_lr: LearningRate
    """AdamW's learning rate for norms and position biases."""
    weight_decay: Annotated[float, Field(ge=0, le=1)]
    """The matrices' decoupled weight decay."""
    max_grad_norm: Annotated[float, Field(gt=0, le=1_000_000)]
    """Gradients are scaled down to this norm."""


class PhaseParameters(_Section):
    """Stages that share an optimizer; the next phase begins with a new one."""

    optimizer: PretrainOptimizerParameters
    """Learning rates and limits."""
    warmup_steps: Annotated[int, Field(ge=0, lt=2**31)]
    """Steps until the highest learning rates."""
    decay_steps: Annotated[int, Field(ge=0, lt=2**31)]
    """Steps of the linear decay at the phase's end."""
    stages: Annotated[list[StageParameters], Field(min_length=1)]
    """The stages, in their order."""


class QuestionGenerationParameters(_Section):
    """Answers to ask about, how questions are sampled, and the round-trip filter."""

    answers: Positive
    """Answers to ask about."""
    batch_size: Positive
    """Answers asked about at a time."""
    temperature: Annotated[float, Field(gt=0, le=10)]
    """The temperature of sampling."""
    top_k: Positive
    """Each token is one of this many most probable ones."""
    min_f1: Annotated[float, Field(ge=0, le=1)]
    """A question stays if the model's own answer to it reaches this F1 (0 to 1)."""


class ReplacedTokensParameters(_Section):
    """Replaced-token detection, which trains the encoder in batches with span corruption."""

    weight: Weight
    """The weight of the detector's loss; 0 turns the generator and the detector off."""
    share: Fraction
    """The share of the plain tokens of an input that the generator fills; 0 turns both off."""
    d_model: Positive
    """The width of the generator's layers."""
    num_layers: Positive
    """Layers of the generator."""


class SpanHeadParameters(_Section):
    """A head that finds answers in the encoder's states, trained in batches with questions."""

    weight: Weight
    """The weight of its loss; 0 turns it off."""


class PretrainEvaluationParameters(_Section):
    """Questions of each kind to answer at most, and how many at a time."""

    questions: Positive
    """At most this many held-out questions of each kind."""
    batch_size: Positive
    """Questions answered at a time."""


class PretrainParameters(_Section):
    """An English base model from scratch: `kedro run --pipelines=pretrain`."""

    text_folder: Annotated[Place, ReadAs("pretraining_text")]
    """The folder of `.jsonl` files with title, id and text."""
    question_folder: Annotated[Place | None, ReadAs("pretraining_question_sets")]
    """A folder of further files of questions, each of any kind that `data.train_file` may be;
    `null` for none."""
    architecture: ArchitectureParameters
    """The base model's layers."""
    text_share: Annotated[float, Field(gt=0, le=1)]
    """The share of the articles that train the tokenizer."""
    prompts: Annotated[list[PretrainPromptParameters], Field(min_length=1)]
    """Prompts of reading; the first one evaluates and filters."""
    asking_prompts: Annotated[list[str], Field(min_length=1)]
    """Prompts that ask for a question, with {answer} and {context}."""
    batches: PretrainBatchesParameters
    """Shapes of batches."""
    dropout: Fraction
    """The model's dropout."""
    replaced_tokens: ReplacedTokensParameters
    """Replaced-token detection."""
    span_head: SpanHeadParameters
    """The span head."""
    reader: PhaseParameters
    """The phase that trains the reader, which generates questions."""
    generation: QuestionGenerationParameters
    """How the reader generates questions."""
    base: PhaseParameters
    """The phase that makes the base from the reader's weights."""
    evaluation: PretrainEvaluationParameters
    """How much is evaluated."""
    float8: list[Literal["wo", "shared"]]
    """What the packed base stores in 8 bits of what stays out of 4: `wo`, the second layer of the
    feed-forward blocks, and `shared`, the embeddings. The rest is bfloat16."""
    compile: Literal["auto"] | bool
    """Whether to compile the model; `auto` compiles on a GPU."""
    checkpoint_dir: Place
    """The folder for checkpoints."""
    save_steps: Positive
    """Steps between checkpoints."""
    logging_steps: Positive
    """Steps between rows of the log."""
    max_minutes: Annotated[float, Field(gt=0, le=1_000_000)] | None
    """A phase stops after this time with a checkpoint, from which the same command resumes;
    `null` sets no limit."""
    seed: Seed
    """Seeds weights, batches and sampling."""

    @field_validator("asking_prompts")
    @classmethod
    def _have_both_slots(cls, templates: list[str]) -> list[str]:
        return [_require_slots(template, "answer", "context") for template in templates]

    @model_validator(mode="after")
    def _has_extra_questions(self) -> Self:
        for name, phase in (("reader", self.reader), ("base", self.base)):
            for number, stage in enumerate(phase.stages):
                if stage.mixture.extra and self.question_folder is None:
                    raise ValueError(
                        f"{name}.stages.{number}.mixture.extra is {stage.mixture.extra}, but "
                        "question_folder names no folder; name one, or set extra to 0"
                    )
        return self


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
    pretrain: PretrainParameters


@dataclass(frozen=True)
class NamedFile:
    """A file that a parameter names.

    Attributes:
        parameter: such as `data.train_file`.
        file: the path or URL; None if the parameter may name none and does not.
    """

    parameter: str
    file: str | None

    @property
    def global_name(self) -> str:
        """The name in globals.yml, which both the parameter and the catalog use."""
        return self.parameter.partition(".")[2]


def named_files(parameters: Parameters) -> dict[str, NamedFile]:
    """Map the datasets whose files are named by parameters to these files."""
    return {
        mark.dataset: NamedFile(f"{section}.{name}", getattr(values, name))
        for section, values in parameters
        for name, field in type(values).model_fields.items()
        for mark in field.metadata
        if isinstance(mark, ReadAs)
    }
