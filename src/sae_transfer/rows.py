"""What was measured: the columns of a statistics row, and the calibration that rows belong to.

The tensor side (engine) writes these, the table side (runs, metrics, report) reads them, and nothing else passes between
the two. A row holds sums over the positions of one document in one token row, for one cell: adding rows is all that
merging, sharding and resuming need, and every metric is a ratio of such sums.
"""

import hashlib
import json
from dataclasses import asdict, dataclass
from typing import Any, Literal

SCHEMA_VERSION = 2


@dataclass(frozen=True)
class Column:
    """A column of a table. Keys say what the rest belongs to; counts and sums add up, values don't; text is null where no
    tokenizer was at hand."""

    name: str
    role: Literal["key", "count", "sum", "value", "text"]
    dtype: Literal["string", "int64", "float64", "list[string]", "list[int64]", "list[float64]"]
    unit: str
    meaning: str


COLUMNS: tuple[Column, ...] = (
    Column("model", "key", "string", "", "NAME of the model"),
    Column("sae", "key", "string", "", "NAME of the SAE"),
    Column("data", "key", "string", "", "NAME of the data set"),
    Column("token_kind", "key", "string", "", "kind of the positions under test"),
    Column("document", "key", "int64", "", "index of the document in input order"),
    Column("row", "key", "int64", "", "index of the token row in input order"),
    Column("scored", "count", "int64", "positions", "positions under test whose next token is scored"),
    Column("kept", "count", "int64", "positions", "positions under test that are not outliers"),
    Column("outliers", "count", "int64", "positions", "positions under test whose norm is above the threshold"),
    Column("ce_clean", "sum", "float64", "nats", "cross-entropy of the unchanged model, over scored positions"),
    Column(
        "ce_spliced",
        "sum",
        "float64",
        "nats",
        "cross-entropy with the reconstruction spliced in, over scored positions",
    ),
    Column("ce_zero", "sum", "float64", "nats", "cross-entropy with positions under test zeroed, over scored positions"),
    Column("kl", "sum", "float64", "nats", "KL(clean || spliced), over scored positions"),
    Column("squared_error", "sum", "float64", "scaled units squared", "|y - x|^2 over kept positions"),
    Column("squared_deviation", "sum", "float64", "scaled units squared", "|x - calibrated mean|^2 over kept positions"),
    Column("error_ratio", "sum", "float64", "1", "squared error / squared deviation, position by position, over kept"),
    Column("active_features", "sum", "float64", "features", "features with activation > 0, over kept positions"),
    Column("norm", "sum", "float64", "unscaled units", "|resid| before scaling, over positions under test"),
)

KEYS = tuple(column.name for column in COLUMNS if column.role == "key")
SUMS = tuple(column.name for column in COLUMNS if column.role != "key")
CELL_KEYS = ("model", "sae", "data", "token_kind")

PLACE = (
    Column("document", "key", "int64", "", "index of the document in input order"),
    Column("row", "key", "int64", "", "index of the token row in input order"),
    Column("position", "key", "int64", "", "index in the token row, from 0"),
)

APART_SUMS = ("squared_error", "squared_deviation", "error_ratio", "active_features")
APART: tuple[Column, ...] = (
    *(column for column in COLUMNS if column.name in CELL_KEYS),
    *PLACE,
    *(column for column in COLUMNS if column.name in APART_SUMS),
)
"""Positions that a cell keeps and another cell of the same data and token kind leaves out: what they add to the cell's sums,
so that the two can be compared over positions that both keep."""

OUTLIERS: tuple[Column, ...] = (
    Column("model", "key", "string", "", "NAME of the model"),
    Column("hook_point", "key", "string", "", "where its norms were taken"),
    Column("threshold", "key", "float64", "unscaled units", "the norm above which a position is left out"),
    Column("data", "key", "string", "", "NAME of the data set"),
    Column("token_kind", "key", "string", "", "kind of the position"),
    *PLACE,
    Column("token", "value", "int64", "", "id of the token"),
    Column("norm", "value", "float64", "unscaled units", "|resid| there"),
    Column("text", "text", "string", "", "the token's text"),
)
"""Every outlier among the positions under test, once for each threshold that sets it apart."""


@dataclass(frozen=True)
class Axis:
    """A way to divide the positions of a cell; each scored or kept position belongs to one bucket, by itself."""

    name: str
    buckets: tuple[str, ...]
    meaning: str


POSITION_STARTS = (*range(1, 8), *(2**power for power in range(3, 31)))
"""Where the buckets of positions after the first begin: early positions alone, then ever longer ranges."""
TOKEN_CLASSES = ("bos", "special", "newline", "first", "common", "middle", "rare")
OUTLIER = "outlier"
AXES: tuple[Axis, ...] = (
    Axis(
        "position",
        tuple(
            str(a) if b - a == 1 else f"{a}-{b - 1}"
            for a, b in zip((0, *POSITION_STARTS), (*POSITION_STARTS, 2**31), strict=True)
        ),
        "index in the token row, from 0, padding not counted",
    ),
    Axis("token-class", TOKEN_CLASSES, "what token it is: of the tokenizer's own, a newline, a first one, or how frequent"),
    Axis("norm", (*map(str, range(1, 11)), OUTLIER), "decile of the model's own norms, without its outliers; or an outlier"),
)

SQUARES = {"kl_squared": "kl", "squared_error_squared": "squared_error"}
"""Sums of squares, for standard errors: of which statistic."""
BREAKDOWN: tuple[Column, ...] = (
    *(column for column in COLUMNS if column.name in CELL_KEYS),
    Column("axis", "key", "string", "", f"{', '.join(axis.name for axis in AXES)}"),
    Column("bucket", "key", "string", "", "part of the axis"),
    *(column for column in COLUMNS if column.role != "key"),
    Column("kl_squared", "sum", "float64", "nats squared", "KL of a position, squared, over scored positions"),
    Column("squared_error_squared", "sum", "float64", "scaled units^4", "|y - x|^4 over kept positions"),
)
"""The sums of rows by bucket of each axis, instead of by document and token row."""

WORST_KEPT = 20
"""Scored positions of largest KL that are kept of each cell."""
WORST: tuple[Column, ...] = (
    *(column for column in COLUMNS if column.name in CELL_KEYS),
    *PLACE,
    Column("kl", "value", "float64", "nats", "KL(clean || spliced) of the position"),
    Column("ce_clean", "value", "float64", "nats", "what the unchanged model loses on the next token"),
    Column("ce_spliced", "value", "float64", "nats", "what the spliced model loses on it"),
    Column("before", "value", "list[int64]", "", "ids of the tokens before it"),
    Column("token", "value", "int64", "", "id of the token at the position, which is spliced"),
    Column("next", "value", "int64", "", "id of the token that is predicted there"),
    Column("after", "value", "list[int64]", "", "ids of the tokens behind that"),
    Column("clean", "value", "list[int64]", "", "the unchanged model's likeliest tokens"),
    Column("clean_p", "value", "list[float64]", "1", "their probabilities"),
    Column("spliced", "value", "list[int64]", "", "the spliced model's likeliest tokens"),
    Column("spliced_p", "value", "list[float64]", "1", "their probabilities"),
    Column("before_text", "text", "string", "", "the text of `before`"),
    Column("token_text", "text", "string", "", "the text of `token`"),
    Column("next_text", "text", "string", "", "the text of `next`"),
    Column("after_text", "text", "string", "", "the text of `after`"),
    Column("clean_text", "text", "list[string]", "", "the text of `clean`"),
    Column("spliced_text", "text", "list[string]", "", "the text of `spliced`"),
)

UNIT_TABLES: dict[str, tuple[Column, ...]] = {"rows": COLUMNS, "apart": APART, "breakdown": BREAKDOWN, "worst": WORST}
"""The tables that every unit of work adds to."""

Block = dict[str, list[Any]]
"""Some rows of a table, by column, of equal length: what the engine yields and a run directory stores."""


@dataclass(frozen=True)
class Norms:
    """Activation norms (unscaled) of one model at one hook point, over every unpadded position of the run's data."""

    model: str
    hook_point: str
    positions: int
    quantiles: dict[str, float]
    auto_threshold: float | None
    """Geometric mean of the two norms around the gap, unscaled; None where there is no gap, and so no outlier."""
    outliers: int
    scaled_by: str
    """The data set whose norms give the scaling factors below."""
    factor_auto: float
    """sqrt(d_model) / mean norm without `auto`'s outliers."""
    factor_saelens: float
    """sqrt(d_model) / mean norm of all positions, SAELens's estimate."""
    deciles: tuple[float, ...] = ()
    """The nine norms between tenths of the positions that are no outliers by `auto`."""


@dataclass(frozen=True)
class Scale:
    """What one model's activations are multiplied by before one SAE, and the norm above which a position is an outlier."""

    model: str
    sae: str
    hook_point: str
    asked_for: bool
    """Whether the SAE's config asks for scaling; where it does not, the factor is 1."""
    factor: float
    threshold: float | None
    """In scaled units; None where nothing is an outlier."""

    @property
    def unscaled_threshold(self) -> float | None:
        """The same threshold on unscaled norms."""
        return None if self.threshold is None else self.threshold / self.factor


@dataclass(frozen=True)
class Mean:
    """Mean residual (unscaled) of the kept positions of one data set and token kind, from which deviations are taken."""

    model: str
    hook_point: str
    threshold: float | None
    """Unscaled outlier threshold that decided which positions were kept."""
    data: str
    token_kind: str
    count: int
    values: tuple[float, ...]


@dataclass(frozen=True)
class Calibration:
    """What one run fixes before it measures anything. Rows of different calibrations don't add up."""

    norms: tuple[Norms, ...]
    scales: tuple[Scale, ...]
    means: tuple[Mean, ...]

    @property
    def hash(self) -> str:
        """sha256 over the exact decimal form of every number."""
        return hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()

    def norms_of(self, model: str, hook_point: str) -> Norms:
        """The norms of one model at one hook point."""
        return next(norms for norms in self.norms if (norms.model, norms.hook_point) == (model, hook_point))

    def scale(self, model: str, sae: str) -> Scale:
        """The scale of one SAE on one model."""
        return next(scale for scale in self.scales if (scale.model, scale.sae) == (model, sae))


@dataclass(frozen=True)
class Drift:
    """How far one model's residual stream lies from another's at one hook point, on the same tokens: no SAE. A value is None
    where `note` says why, or where it was not asked for. docs/drift.md defines each."""

    reference: str
    model: str
    data: str
    token_kind: str
    hook_point: str
    positions: int | None = None
    outliers: int | None = None
    cosine: float | None = None
    norm_ratio: float | None = None
    relative_distance: float | None = None
    cka: float | None = None
    scalar_share: float | None = None
    shift_share: float | None = None
    orthogonal_share: float | None = None
    difference_pcs: tuple[float, ...] | None = None
    note: str = ""


DRIFT_COLUMNS: dict[str, tuple[str, str]] = {
    "reference": ("", "NAME of the model that the others are compared with (x)"),
    "model": ("", "NAME of the model (y)"),
    "data": ("", "NAME of the data set"),
    "token_kind": ("", "kind of the positions: all, user_prompt, rollout, control_tokens, system"),
    "hook_point": ("", "place in the residual stream"),
    "positions": ("positions", "under test and an outlier in neither model"),
    "outliers": ("positions", "under test and an outlier (`auto`) in one of the models: left out"),
    "cosine": ("1", "mean of cos(x, y)"),
    "norm_ratio": ("1", "mean |y| / mean |x|"),
    "relative_distance": ("1", "sqrt(sum |y - x|^2 / sum |x - mean x|^2)"),
    "cka": ("1", "linear CKA of centred activations"),
    "scalar_share": ("1", "share of sum |y - x|^2 that y = a x explains with the best number a"),
    "shift_share": ("1", "share of sum |y - x|^2 that y = x + b explains with the best vector b"),
    "orthogonal_share": (
        "1",
        "share of sum |y - x|^2 that the best orthogonal map about the means explains, on documents that it was not fitted on",
    ),
    "difference_pcs": ("1", "shares of the variance of y - x along its top five principal directions"),
    "note": ("", "why values are missing"),
}
"""Unit and meaning of each field of Drift."""
