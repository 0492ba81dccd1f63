"""The feature store: what frozen encoders made of files, kept by content and never made twice."""

from pave.data.store.collect import CollectReport, collect
from pave.data.store.extract import ExtractReport, extract
from pave.data.store.plan import Plan, plan_features
from pave.data.store.reading import StoredChannels
from pave.data.store.shards import FeatureStore, ShardLimits

__all__ = [
    "CollectReport",
    "ExtractReport",
    "FeatureStore",
    "Plan",
    "ShardLimits",
    "StoredChannels",
    "collect",
    "extract",
    "plan_features",
]
