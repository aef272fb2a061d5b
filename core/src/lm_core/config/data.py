"""Sections of a run about data: data sets, tokenizer, metrics."""

from __future__ import annotations

from typing import Annotated, Literal

from lm_core.config.section import NO_EFFECT, OneOf, Positive, Section


class TokenizerConfig(Section):
    """Which vocabulary. Its files, and the model's package, say which tokens are special."""

    type: str = ""
    """Accepted as the cards write it; the model package decides."""
    vocab_file: str | None = None
    merges_file: str | None = None
    merge_file: str | None = None
    tokenizer_file: str | None = None
    max_length: Annotated[Positive | None, NO_EFFECT] = None
    padding_side: Annotated[Literal["left", "right"], NO_EFFECT] = "right"
    add_bos_token: Annotated[bool | None, NO_EFFECT] = None
    add_eos_token: Annotated[bool | None, NO_EFFECT] = None
    unk_token: Annotated[str | None, NO_EFFECT] = None
    bos_token: Annotated[str | None, NO_EFFECT] = None
    eos_token: Annotated[str | None, NO_EFFECT] = None
    pad_token: Annotated[str | None, NO_EFFECT] = None
    end_token: Annotated[str | None, NO_EFFECT] = None
    mask_token: Annotated[str | None, NO_EFFECT] = None
    gmask_token: Annotated[str | None, NO_EFFECT] = None


class DataLoader(Section):
    """Where the records are."""

    type: Literal[
        "MindDataset",
        "ADGenDataLoader",
        "TrainingDataLoader",
        "SFTDataLoader",
        "MultiSourceDataLoader",
        "TFRecordDataset",
    ] = "MindDataset"
    dataset_dir: str = ""
    """A file, or a directory whose mindrecord files are read."""
    dataset_files: str | list[str] | None = None
    shuffle: bool = True
    num_samples: Positive | None = None
    """Use only the first so many samples."""
    phase: Literal["train", "eval", "test", "predict"] | None = None
    version: int | None = None
    origin_columns: list[str] | None = None
    dataset_name: str | None = None
    file_format: str | None = None
    tokenizer: TokenizerConfig | None = None


class DatasetConfig(Section):
    """A data set and how its samples become batches."""

    data_loader: DataLoader = DataLoader()
    tokenizer: TokenizerConfig = TokenizerConfig()
    input_columns: list[str] | None = None
    output_columns: list[str] | None = None
    eod_reset: bool = False
    """Restart positions and attention after each end-of-document token."""
    eod_token_id: int | None = None
    max_source_length: Positive | None = None
    max_target_length: Positive | None = None
    ignore_pad_token_for_loss: bool = True
    drop_remainder: bool | None = None
    """None: True for training, False for evaluation."""
    batch_size: Positive | None = None
    """None: `runner_config.batch_size`, which also wins over a number here."""
    seed: int | None = None
    repeat: Annotated[Positive, NO_EFFECT] = 1
    num_parallel_workers: Annotated[Positive, NO_EFFECT] = 8
    python_multiprocessing: Annotated[bool, NO_EFFECT] = False
    numa_enable: Annotated[bool, NO_EFFECT] = False
    prefetch_size: Annotated[Positive, NO_EFFECT] = 1
    auto_tune: Annotated[bool, NO_EFFECT] = False
    autotune_per_step: Annotated[int, NO_EFFECT] = 10
    filepath_prefix: Annotated[str, NO_EFFECT] = "./autotune"
    profile: Annotated[bool, NO_EFFECT] = False


class DatasetTask(Section):
    """What the samples are for. The cards' `dataset_config` alias is the section itself."""

    type: Annotated[
        str,
        OneOf(
            {
                "causal_lm": ("CausalLanguageModelDataset",),
                "text_classification": ("TextClassificationDataset",),
                "keyword_generation": ("KeyWordGenDataset",),
            }
        ),
    ] = "causal_lm"


class MetricConfig(Section):
    """How evaluation is scored."""

    type: Annotated[
        str,
        OneOf(
            {
                "perplexity": ("PerplexityMetric",),
                "accuracy": ("Accuracy",),
                "adgen": ("ADGENMetric",),
                "em_f1": ("EmF1Metric",),
                "prompt_accuracy": ("PromptAccMetric",),
            }
        ),
    ] = "perplexity"
    eval_type: Literal["classification"] | None = None
    num_labels: Positive | None = None
    tokenizer_type: str | None = None


class Processor(Section):
    """Text to ids for `predict` and pipelines."""

    type: str = ""
    return_tensors: Literal["ms", "np"] | None = None
    tokenizer: TokenizerConfig = TokenizerConfig()
