"""The feature store: what frozen encoders made of files, kept by content and never made twice."""

from pave.data.store.collect import CollectReport, collect
from pave.data.store.extract import ExtractReport, extract
from pave.data.store.plan import VISION, Plan, plan_features
from pave.data.store.reading import StoredChannels, StoredVision
from pave.data.store.shards import FeatureStore, ShardLimits

__all__ = [
    "VISION",
    "CollectReport",
    "ExtractReport",
    "FeatureStore",
    "Plan",
    "ShardLimits",
    "StoredChannels",
    "StoredVision",
    "collect",
    "extract",
    "plan_features",
]
