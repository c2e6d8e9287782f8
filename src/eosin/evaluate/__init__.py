"""Frozen features to scores: one file a protocol, embeddings kept by content, intervals and paired tests."""

from eosin.evaluate import eva as _eva  # noqa: F401
from eosin.evaluate import fewshot as _fewshot  # noqa: F401
from eosin.evaluate import finetune as _finetune  # noqa: F401  (registers the protocol)
from eosin.evaluate import knn as _knn  # noqa: F401  (registers the protocol)
from eosin.evaluate import linear as _linear  # noqa: F401
from eosin.evaluate import linear_cached as _linear_cached  # noqa: F401
from eosin.evaluate import logistic as _logistic  # noqa: F401
from eosin.evaluate import shift as _shift  # noqa: F401
from eosin.evaluate.dense import DenseStore, embed_dense, open_dense
from eosin.evaluate.embed import Embeddings, embed, embedding_key
from eosin.evaluate.embed_pass import DenseMaps
from eosin.evaluate.evaluation import Evaluation, ProbeData, evaluate, fit_of, material_of, probe_data, score
from eosin.evaluate.foreign import read_embeddings
from eosin.evaluate.metrics import METRICS, metric_value
from eosin.evaluate.paired import Comparison, holm, paired_test
from eosin.evaluate.parquet import embed_to_parquet
from eosin.evaluate.protocol import (
    PROTOCOLS,
    Answer,
    Asked,
    FeatureProtocol,
    Fit,
    Material,
    Prediction,
    Protocol,
    open_protocol,
    open_protocols,
)
from eosin.evaluate.stain_probe import StainProbeConfig, run_stain_probe
from eosin.evaluate.statistics import Predicted, bootstrap_interval

__all__ = [
    "METRICS",
    "PROTOCOLS",
    "Answer",
    "Asked",
    "Comparison",
    "DenseMaps",
    "DenseStore",
    "Embeddings",
    "Evaluation",
    "FeatureProtocol",
    "Fit",
    "Material",
    "Predicted",
    "Prediction",
    "ProbeData",
    "Protocol",
    "StainProbeConfig",
    "bootstrap_interval",
    "embed",
    "embed_dense",
    "embed_to_parquet",
    "embedding_key",
    "evaluate",
    "fit_of",
    "holm",
    "material_of",
    "metric_value",
    "open_dense",
    "open_protocol",
    "open_protocols",
    "paired_test",
    "probe_data",
    "read_embeddings",
    "run_stain_probe",
    "score",
]
